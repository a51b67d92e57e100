"""Every row: importing this fills `ROWS`."""

from . import corpus, fuzz
from .rows import ROWS

__all__ = ["ROWS", "corpus", "fuzz"]
