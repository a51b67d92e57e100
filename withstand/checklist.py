"""Every row: importing this fills `ROWS`."""

from . import (
    amplification,
    compressed,
    corpus,
    fuzz,
    limits,
    nesting,
    shapes,
    sockets,
)
from .rows import ROWS

__all__ = [
    "ROWS",
    "amplification",
    "compressed",
    "corpus",
    "fuzz",
    "limits",
    "nesting",
    "shapes",
    "sockets",
]
