"""Every row: importing this fills `ROWS`."""

from . import (
    amplification,
    answers,
    compressed,
    corpus,
    fuzz,
    generated,
    keys,
    leaks,
    limits,
    nesting,
    openapi,
    secrecy,
    shapes,
    sockets,
    tallies,
)
from .rows import ROWS

__all__ = [
    "ROWS",
    "amplification",
    "answers",
    "compressed",
    "corpus",
    "fuzz",
    "generated",
    "keys",
    "leaks",
    "limits",
    "nesting",
    "openapi",
    "secrecy",
    "shapes",
    "sockets",
    "tallies",
]
