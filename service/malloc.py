"""Settings of the C library's allocator, so that freed memory goes back to the system.

glibc keeps freed memory for later: after a burst of large bodies a process stays as
large as it was at its largest (`mallopt(3)`, `malloc_trim(3)`). Other C libraries have
none of these functions; there, nothing happens.
"""

import ctypes
from contextlib import suppress

# Constants of glibc's `malloc.h`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Larger blocks are mapped one by one, and unmapped when they are freed. To set the
# threshold also keeps glibc from raising it after each large block (to 32 MiB).
# Smaller than that, a worker's batches would be mapped with every engine call.
MAPPED_BYTES = 2**20
KEPT_BYTES = 8 * 2**20  # free at the top of the heap, before it is given back
ARENAS = 2  # else eight a core, each of which keeps what it has


def configure() -> None:
    """Have large blocks given back to the system as soon as they are freed."""
    with suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (M_MMAP_THRESHOLD, MAPPED_BYTES),
            (M_TRIM_THRESHOLD, KEPT_BYTES),
            (M_ARENA_MAX, ARENAS),
        ):
            mallopt(option, value)


def trim() -> None:
    """Give back all free memory that can be. Takes milliseconds; not on the loop."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
