"""A fixed number of slots for work that takes time, given to callers in fair order."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

from service.callers.fair_queue import CallerId, FairQueue

QUANTUM = 2**20  # bytes; smaller work counts as equal
# Ordinary work is this fast. An invalid body may take ten times as long as a valid one,
# so in the end a caller is charged for the time, at this rate.
BYTES_PER_SECOND = 50e6

S = TypeVar("S")


class FairSlots(Generic[S]):
    """Slots, each held by one caller at a time; the others wait in fair order.

    If there are several owners of API keys, no owner holds all slots: another one
    never waits for work that is not its own.
    """

    def __init__(self, slots: Iterable[S]):
        self._free = list(slots)
        self._owner_limit = max(1, len(self._free) - 1)
        self._waiting: FairQueue[tuple[asyncio.Future[S], CallerId, int]] = FairQueue(
            QUANTUM
        )
        self._acquired: dict[
            S, tuple[CallerId, int, float]
        ] = {}  # with cost, start time
        self._by_owner: Counter[str] = Counter()  # held slots

    async def acquire(self, caller: CallerId, cost: int) -> S:
        """Wait for a slot and return it.

        Args:
            cost: of the work, in bytes.
        """
        future: asyncio.Future[S] = asyncio.get_running_loop().create_future()
        self._waiting.push(caller, (future, caller, cost), cost)
        self._assign()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, slot: S) -> None:
        """Free a slot, for the next caller."""
        caller, cost, start = self._acquired.pop(slot)
        self._by_owner[caller[0]] -= 1
        actual_cost = int(BYTES_PER_SECOND * (time.monotonic() - start))
        self._waiting.refund(caller, cost - actual_cost)
        self._free.append(slot)
        self._assign()

    def _assign(self) -> None:
        while self._free and self._waiting:
            full = {
                owner
                for owner, slots in self._by_owner.items()
                if owner and slots >= self._owner_limit
            }
            try:
                future, caller, cost = self._waiting.pop(skip=full)
            except IndexError:  # all owners that wait have their limit
                return
            if future.done():  # it was cancelled
                self._waiting.refund(caller, cost)
                continue
            slot = self._free.pop()
            self._acquired[slot] = caller, cost, time.monotonic()
            self._by_owner[caller[0]] += 1
            future.set_result(slot)
