"""A budget of bytes for all that the serving process buffers for its clients.

Partial bodies, decompressed bodies, frames that wait for a worker, pipelined requests,
stream messages and unread responses: each counts for its connection, for the owner of
its API key, and in total. At the limit, connections that wait for their client are
evicted, those first that have buffered the most bytes for the longest time. If there is
none, the request for more is refused.

An owner may use as many bytes as are left free. One owner alone gets half of the
budget, two get a third each, and there is always room for another (dynamic thresholds:
Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

from service import os_resources
from service.errors import BufferFull
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

ACCOUNT = "unrolled.account"  # ASGI extension: the `Account` of a connection
EVICTION_SHARE = 1 / 8  # of the limit is freed, so that the next eviction is not soon
TRIM_BYTES = 8 * 2**20  # after a peak above it, free memory goes back to the system
TRIM_SECONDS = 1.0
RETRY = {"Retry-After": "1"}


class MemoryBudget:
    """The bytes buffered for all connections."""

    def __init__(self, limit: int, metrics: Metrics):
        self.limit, self.used = limit, 0
        self._accounts: dict[Account, None] = {}  # an ordered set of those in use
        self._owners: dict[str, int] = {}  # bytes of each API key's owner
        self._evictions = metrics.evictions
        self._numbers = itertools.count(1)
        self._peak = 0
        self._timer: asyncio.TimerHandle | None = None
        metrics.buffered_bytes.set_function(lambda: self.used)

    def account(self, evict: Callable[[], bool] = lambda: False) -> "Account":
        """Return the account of a new connection.

        Args:
            evict: closes the connection if it waits for its client; returns whether
                it did.
        """
        return Account(self, next(self._numbers), evict)

    def free_for(self, owner: str) -> int:
        """Return how many more bytes an owner may use; for "" all free bytes."""
        free = self.limit - self.used
        return free - self._owners.get(owner, 0) if owner else free

    def change(self, account: "Account", size: int) -> None:
        """Add bytes to an account, or remove them, regardless of the limit."""
        if account.size == 0:
            account.since = time.monotonic()
            self._accounts[account] = None
        account.size += size
        self.used += size
        if account.owner:
            owned = self._owners.get(account.owner, 0) + size
            if owned:
                self._owners[account.owner] = owned
            else:
                del self._owners[account.owner]
        if account.size == 0:
            del self._accounts[account]
        if self.used > self._peak:
            self._peak = self.used
            if self._timer is None and self._peak > TRIM_BYTES:
                self._schedule_trim()

    def make_room(self, account: "Account") -> bool:
        """Evict connections until the limit holds. Return whether it does, and the
        account's connection still exists."""
        owner = account.owner if self.used <= self.limit else ""
        spare = 0 if owner else int(EVICTION_SHARE * self.limit)
        now = time.monotonic()
        candidates = [a for a in self._accounts if not owner or a.owner == owner]
        candidates.sort(key=lambda a: a.size * (now - a.since), reverse=True)
        for candidate in candidates:
            if self.free_for(owner) >= spare:
                break
            if candidate.evict():
                self._evictions.inc()
                extra = {"bytes": candidate.size, "owner": candidate.owner}
                log.info("evicted", extra=extra)
                candidate.close()
        return self.free_for(owner) >= 0 and not account.closed

    def _schedule_trim(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        """After a peak, return free memory to the system."""
        self._timer = None
        peak, self._peak = self._peak, self.used
        if self.used > peak / 2:  # the peak goes on
            self._schedule_trim()
        else:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, os_resources.release_free_memory)


class Account:
    """The bytes buffered for one connection, which has a number of its own."""

    __slots__ = ("_budget", "closed", "evict", "number", "owner", "since", "size")

    def __init__(self, budget: MemoryBudget, number: int, evict: Callable[[], bool]):
        self._budget, self.number, self.evict = budget, number, evict
        self.owner = ""  # of the API key
        self.size = 0
        self.since = 0.0  # when the size was last 0 (`time.monotonic`)
        self.closed = False

    def add(self, size: int) -> bool:
        """Add bytes, and return whether they are within the limits; otherwise they are
        not counted. Nothing counts for a connection that is closed."""
        if self.closed:
            return True
        budget = self._budget
        budget.change(self, size)
        if budget.used <= budget.limit and (
            not self.owner or budget.free_for(self.owner) >= 0
        ):
            return True
        if budget.make_room(self):
            return True
        if not self.closed:
            budget.change(self, -size)
        return False

    def remove(self, size: int) -> None:
        if size and not self.closed:
            self._budget.change(self, -size)

    def set_owner(self, owner: str) -> None:
        """Count all bytes for the owner of an API key from now on."""
        if owner != self.owner and not self.closed:
            size = self.size
            self.remove(size)
            self.owner = owner
            if size:
                self._budget.change(self, size)

    def close(self) -> None:
        """Stop counting: the connection is closed."""
        self.remove(self.size)
        self.closed = True
        self.evict = _not_evicted  # so that the connection can be freed


class Reservation:
    """The bytes of an account for one purpose: a request, a buffer."""

    __slots__ = ("_account", "size")

    def __init__(self, account: Account):
        self._account, self.size = account, 0

    def resize(self, size: int) -> None:
        """Reserve so many bytes in place of those so far.

        Raises:
            BufferFull: the limit does not allow it; the old size remains.
        """
        more = size - self.size
        if more > 0 and not self._account.add(more):
            raise BufferFull("too many bytes are held for requests", headers=RETRY)
        if more < 0:
            self._account.remove(-more)
        self.size = size

    def grow_to(self, size: int) -> None:
        """Reserve at least so many bytes; raises as `resize`."""
        if size > self.size:
            self.resize(size)

    def release(self) -> None:
        self.resize(0)


def _not_evicted() -> bool:
    return False
