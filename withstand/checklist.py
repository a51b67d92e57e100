"""Every row: importing this fills `ROWS`."""

from . import crosstalk as crosstalk
from .rows import ROWS

__all__ = ["ROWS"]
