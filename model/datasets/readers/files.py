"""Access to the files that a user gives: numbered lines, a memory limit, error places.

ValueError
└── ReadError    path, line, reason: what is wrong with a file, and where

A thousand bytes of Parquet or NPZ can stand for gigabytes of one number. The sizes that
such a file declares are therefore compared with a limit before anything is
decompressed. Text takes as many characters as it holds numbers, so JSON Lines, CSV and
.ts need no limit.
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

ENCODING: ContextVar[str] = ContextVar("encoding", default="utf-8")  # of text files
MAX_BYTES = 2**30  # 134 million float32 numbers in NPZ; UEA's largest file has 54


class Rows(NamedTuple):
    """The rows of a table, or the objects of lines, by the names of their columns."""

    header: list[str]
    line: int | None  # of the header
    rows: Iterable[tuple[int, Mapping[str, Any]]]  # with their lines or numbers


class ReadError(ValueError):
    """A file that does not hold sequences.

    `line` is the number of a line, words for another place ("array 'x'", "row 7"),
    or None for the file as a whole.
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


@contextmanager
def encoded(name: str | None) -> Iterator[None]:
    """Read text files in an encoding while the block runs; None: in UTF-8.

    Raises:
        ValueError: the encoding is unknown, or its lines don't end in one byte.
    """
    try:
        known = codecs.lookup(name or "utf-8")
        if "\n".encode(known.name) != b"\n":
            raise LookupError
    except (LookupError, UnicodeError, ValueError):
        reason = "use one such as cp1252, latin-1 or utf-8"
        raise ValueError(
            f"--encoding {name}: can't read lines in it; {reason}"
        ) from None
    token = ENCODING.set(known.name)
    try:
        yield
    finally:
        ENCODING.reset(token)


def check_memory(
    path: Path, place: str | None, content: str, size: int, advice: str
) -> None:
    """Refuse content whose `size` in memory exceeds the limit; advise how to go on.

    Raises:
        ReadError: it needs more than `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        limit = f"at most {MAX_BYTES:,}; {advice}"
        reason = f"{content} would take {size:,} bytes of memory, {limit}"
        raise ReadError(path, place, reason)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (1, first line), (2, second line), ..., with their line ends."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, _decode(path, number, line)
    except OSError as error:
        raise ReadError(path, None, error.strerror or str(error)) from None


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        # Spreadsheets put a byte order mark before the first line.
        first = number == 1 and ENCODING.get() == "utf-8"
        return line.decode("utf-8-sig" if first else ENCODING.get())
    except UnicodeDecodeError:
        name = ENCODING.get().upper()
        hint = "save it as UTF-8, or name its encoding (--encoding cp1252)"
        raise ReadError(path, number, f"not {name} text: {hint}") from None
