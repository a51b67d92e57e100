"""Every row: importing this fills `ROWS`."""

from .rows import ROWS

__all__ = ["ROWS"]
