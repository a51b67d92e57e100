"""Places for work that takes time, given to callers in fair turns."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

from service.callers.fair_queue import CallerId, FairQueue

QUANTUM = 2**20  # bytes, up to which all work counts as alike
# What ordinary work takes. A wrong body may take ten times as long as a good one, so
# who had a place is charged for the time in the end.
BYTES_PER_SECOND = 50e6

P = TypeVar("P")


class FairSlots(Generic[P]):
    """As many at a time as there are places; others wait, fairly between callers.

    Of several owners of API keys, none has all places: another waits for the end of its
    own work only.
    """

    def __init__(self, places: Iterable[P]):
        self._free = list(places)
        self._most = max(1, len(self._free) - 1)  # of one owner
        self._waiting: FairQueue[tuple[asyncio.Future[P], CallerId, int]] = FairQueue(
            QUANTUM
        )
        self._taken: dict[
            P, tuple[CallerId, int, float]
        ] = {}  # what it costs, and since
        self._owners: Counter[str] = Counter()  # their places

    async def acquire(self, caller: CallerId, cost: int) -> P:
        """Waits for a place, to be given back.

        Args:
            caller: the owner of an API key, and a connection.
            cost: of the work, in bytes.
        """
        future: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        self._waiting.push(caller, (future, caller, cost), cost)
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, place: P) -> None:
        """The place is free, for the next in turn."""
        caller, cost, since = self._taken.pop(place)
        self._owners[caller[0]] -= 1
        took = int(BYTES_PER_SECOND * (time.monotonic() - since))
        self._waiting.refund(caller, cost - took)
        self._free.append(place)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            passed = {
                owner
                for owner, places in self._owners.items()
                if owner and places >= self._most
            }
            try:
                future, caller, cost = self._waiting.pop(passed)
            except IndexError:  # all that wait have enough
                return
            if future.done():  # it was cancelled
                self._waiting.refund(caller, cost)
                continue
            place = self._free.pop()
            self._taken[place] = caller, cost, time.monotonic()
            self._owners[caller[0]] += 1
            future.set_result(place)
