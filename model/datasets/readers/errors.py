"""What a reader says about a file that it refuses.

ValueError
└── ReadError    path, line, reason: what is wrong, and where to mend it
"""

from pathlib import Path


class ReadError(ValueError):
    """A file that does not hold sequences.

    `line` is the number of a line, words for another place ("array 'x'", "row 7"),
    or None where the file as a whole is meant.
    """

    def __init__(self, path: str | Path, line: int | str | None, reason: str):
        super().__init__(path, line, reason)
        self.path = path
        self.line = line
        self.reason = reason

    def __str__(self) -> str:
        if self.line is None:
            return f"{self.path}: {self.reason}"
        place = f"line {self.line}" if isinstance(self.line, int) else self.line
        return f"{self.path}, {place}: {self.reason}"
