"""Every row: importing this fills `ROWS`."""

from . import (  # noqa: F401 (each puts its rows there)
    amplification,
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

__all__ = ["ROWS"]
