"""The operating system's resources: cores, thread priority, memory limit, allocator.

Each function does nothing on a system that lacks the mechanism.
"""

import contextlib
import ctypes
import math
import os
import resource
import sys
import threading
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LOWEST_PRIORITY = 19  # `nice`
STATM = Path("/proc/self/statm")
STATM_DATA = 5  # field of `STATM`: pages that are private and writable

# Options of glibc's `malloc.h`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# glibc maps larger blocks one by one and unmaps them when they are freed. A fixed
# threshold also keeps glibc from raising it after each large block (up to 32 MiB).
# With a smaller one, each engine call of a worker would map its batch anew.
MMAP_THRESHOLD_BYTES = 2**20
TRIM_THRESHOLD_BYTES = 8 * 2**20  # free at the heap's top before it is returned
ARENAS = 2  # glibc's default is eight for each core, and each keeps freed memory


def available_cores() -> int:
    """Return how many whole cores this process may use, by CPU affinity and cgroup
    quota (`os.cpu_count()` is the host's count)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    for quota in (_cgroup_v2_quota(), _cgroup_v1_quota()):
        if quota:
            cores = min(cores, math.ceil(quota))
    return max(cores, 1)


def _cgroup_v2_quota() -> float | None:
    """Return the cores that cgroup v2 allows; None if it sets no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _cgroup_v1_quota() -> float | None:
    try:
        quota, period = (
            int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text())
            for name in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def open_files_allowed() -> float:
    """Return how many files this process may ever have open; infinite without a limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if hard == resource.RLIM_INFINITY else hard


def lower_thread_priority() -> None:
    """Give the calling thread only the CPU time that others leave. This is permanent:
    raising a priority takes a privilege that the service does not have."""
    if sys.platform == "linux":  # elsewhere, a priority is the whole process's
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def limit_memory(extra_bytes: int) -> None:
    """Limit this process to `extra_bytes` more data memory than it uses now
    (`RLIMIT_DATA` of `setrlimit(2)`). An allocation beyond the limit raises an error
    in the code that asks for it, and the process goes on."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(STATM.read_text().split()[STATM_DATA])
        limit = pages * resource.getpagesize() + extra_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def configure_allocator() -> None:
    """Have the C library return large blocks to the system as soon as they are freed.

    By default glibc keeps freed memory: after a burst of large bodies a process stays
    as large as it was at its largest (`mallopt(3)`).
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
            (M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
            (M_ARENA_MAX, ARENAS),
        ):
            mallopt(option, value)


def release_free_memory() -> None:
    """Return all freed memory to the system (`malloc_trim(3)`). This takes
    milliseconds: do not call it on the event loop."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
