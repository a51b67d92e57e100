"""Every row: importing this fills `ROWS`."""

from . import callers as callers
from . import crosstalk as crosstalk
from . import deadlines as deadlines
from . import isolation as isolation
from . import shutdown as shutdown
from .rows import ROWS

__all__ = ["ROWS"]
