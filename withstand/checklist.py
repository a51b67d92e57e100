"""Every row: importing this fills `ROWS`."""

from . import crosstalk as crosstalk
from . import isolation as isolation
from .rows import ROWS

__all__ = ["ROWS"]
