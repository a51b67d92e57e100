"""Places for work that takes time, given to callers in fair turns."""

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

from .fair_queue import FairQueue

QUANTUM = 2**20  # bytes, up to which all work counts as alike

P = TypeVar("P")


class FairTurns(Generic[P]):
    """As many at a time as there are places; others wait, fairly between callers."""

    def __init__(self, places: Iterable[P]):
        self._free = list(places)
        self._waiting: FairQueue[asyncio.Future[P]] = FairQueue(QUANTUM)

    async def take(self, caller: tuple[str, int], cost: int) -> P:
        """Waits for a place, to be given back.

        Args:
            caller: the owner of an API key, and a connection.
            cost: of the work, in bytes.
        """
        if self._free and not self._waiting:
            return self._free.pop()
        future: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        self._waiting.push(caller, future, cost)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            raise

    def give_back(self, place: P) -> None:
        """The place is free, for the next in turn."""
        while self._waiting:
            future = self._waiting.pop()
            if not future.done():  # else it was cancelled
                future.set_result(place)
                return
        self._free.append(place)
