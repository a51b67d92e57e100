"""Every row: importing this fills `ROWS`."""

from . import callers as callers
from . import crash as crash
from . import crosstalk as crosstalk
from . import deadlines as deadlines
from . import isolation as isolation
from . import memory as memory
from . import overload as overload
from . import refusals as refusals
from . import shutdown as shutdown
from . import slow_clients as slow_clients
from . import startup as startup
from .rows import ROWS

__all__ = ["ROWS"]
