"""Every row: importing this fills `ROWS`."""

from . import corpus
from .rows import ROWS

__all__ = ["ROWS", "corpus"]
