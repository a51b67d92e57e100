"""Write Markdown: names that can't break it, counts, and tables."""

import re
from collections.abc import Iterable, Sequence


def line(name: str) -> str:
    r"""Return `name` on one line, without invisible characters.

    >>> line("two\nlines")
    'two lines'
    """
    visible = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(visible.split()) or "␣"


def names(values: Iterable[str]) -> str:
    """Return escaped names on one line."""
    return " · ".join(map(escape, values))


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if needed."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def escape(name: str) -> str:
    """Escape `name` for Markdown, tables included."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", line(name))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
