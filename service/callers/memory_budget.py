"""A budget of bytes for all that the serving process holds for its clients.

Bodies under way, inflated bodies, frames that wait for a worker, pipelined requests,
messages of streams and answers that are not read yet: each counts for its connection,
for the owner of its API key, and in all. At the limit, connections that wait for their
client are evicted, those first that held the most bytes for the longest time; where
there is none, what asks for more is refused.

An owner may hold as many bytes as are left free. A single one gets half of the budget,
two a third each, and there is always room for another (dynamic thresholds: Choudhury
and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
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
SPARE = 1 / 8  # of the limit, that an eviction frees, so that the next is not at once
TRIM_BYTES = 8 * 2**20  # held: after that many, freed memory goes back to the system
TRIM_SECONDS = 1.0
RETRY = {"Retry-After": "1"}


class MemoryBudget:
    """The bytes held for all connections."""

    def __init__(self, limit: int, metrics: Metrics):
        self.limit, self.used = limit, 0
        self._accounts: dict[Account, None] = {}  # those that hold something
        self._owners: dict[str, int] = {}  # bytes of each API key's owner
        self._evictions = metrics.evictions
        self._numbers = itertools.count(1)
        self._peak = 0
        self._timer: asyncio.TimerHandle | None = None
        metrics.buffered_bytes.set_function(lambda: self.used)

    def account(self, evict: Callable[[], bool] = lambda: False) -> "Account":
        """Returns the account of a new connection.

        Args:
            evict: closes the connection where that waits for its client; returns
                whether it did.
        """
        return Account(self, next(self._numbers), evict)

    def free_for(self, owner: str) -> int:
        """Returns how many more bytes an owner may hold; for "" all that are free."""
        free = self.limit - self.used
        return free - self._owners.get(owner, 0) if owner else free

    def change(self, account: "Account", size: int) -> None:
        """Counts bytes of an account, whether they may be held or not."""
        if account.size == 0:
            account.since = time.monotonic()
            self._accounts[account] = None
        account.size += size
        self.used += size
        if account.owner:
            held = self._owners.get(account.owner, 0) + size
            if held:
                self._owners[account.owner] = held
            else:
                del self._owners[account.owner]
        if account.size == 0:
            del self._accounts[account]
        if self.used > self._peak:
            self._peak = self.used
            if self._timer is None and self._peak > TRIM_BYTES:
                self._schedule_trim()

    def make_room(self, account: "Account") -> bool:
        """Evicts connections until the budget holds; returns whether it does, and the
        account's connection is still there."""
        owner = account.owner if self.used <= self.limit else ""
        spare = 0 if owner else int(SPARE * self.limit)
        now = time.monotonic()
        holders = [a for a in self._accounts if not owner or a.owner == owner]
        holders.sort(key=lambda a: a.size * (now - a.since), reverse=True)
        for one in holders:
            if self.free_for(owner) >= spare:
                break
            if one.evict():
                self._evictions.inc()
                log.info("evicted", extra={"bytes": one.size, "owner": one.owner})
                one.close()
        return self.free_for(owner) >= 0 and not account.closed

    def _schedule_trim(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        """After a burst, have the allocator give back what it left."""
        self._timer = None
        if self.used > self._peak / 2:
            self._peak = self.used
            self._schedule_trim()
            return
        self._peak = self.used
        asyncio.get_running_loop().run_in_executor(
            None, os_resources.release_free_memory
        )


class Account:
    """The bytes held for one connection, which has a number of its own."""

    __slots__ = ("_budget", "closed", "evict", "number", "owner", "since", "size")

    def __init__(self, budget: MemoryBudget, number: int, evict: Callable[[], bool]):
        self._budget, self.number, self.evict = budget, number, evict
        self.owner = ""  # of the API key
        self.size = 0
        self.since = 0.0  # when it began to hold something (monotonic)
        self.closed = False

    def add(self, size: int) -> bool:
        """Counts more bytes; returns whether they may be held. Where they may not, they
        are not counted. Of a connection that has gone nothing is."""
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
        """Counts bytes no more."""
        if size and not self.closed:
            self._budget.change(self, -size)

    def set_owner(self, owner: str) -> None:
        """Counts everything for the owner of an API key from now on."""
        if owner != self.owner and not self.closed:
            held = self.size
            self.remove(held)
            self.owner = owner
            if held:
                self._budget.change(self, held)

    def close(self) -> None:
        """The connection has gone: nothing of it counts any more."""
        self.remove(self.size)
        self.closed = True
        self.evict = _gone


class Reservation:
    """What of an account is held for one purpose: a request, a buffer."""

    __slots__ = ("_account", "size")

    def __init__(self, account: Account):
        self._account, self.size = account, 0

    def resize(self, size: int) -> None:
        """Holds so many bytes from now on.

        Raises:
            BufferFull: they can't be held; it holds what it did.
        """
        more = size - self.size
        if more > 0 and not self._account.add(more):
            raise BufferFull("too many bytes are held for requests", headers=RETRY)
        if more < 0:
            self._account.remove(-more)
        self.size = size

    def grow_to(self, size: int) -> None:
        """As `resize`, but never to less."""
        if size > self.size:
            self.resize(size)

    def release(self) -> None:
        self.resize(0)


def _gone() -> bool:
    return False
