"""A limit on the memory that this process takes (`RLIMIT_DATA` of `setrlimit(2)`).

A network whose operators ask for more gets an error, and the others in its process go
on. Where the system has no such limit, nothing happens.
"""

import resource
from contextlib import suppress
from pathlib import Path

STATM = Path("/proc/self/statm")
DATA = 5  # its place there: pages that are private and can be written


def allow(more: int) -> None:
    """Let this process take so many bytes more than it has now, and no more."""
    with suppress(OSError, ValueError):
        pages = int(STATM.read_text().split()[DATA])
        most = pages * resource.getpagesize() + more
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
