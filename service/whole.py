"""Batching of whole sequences, for networks that read them in both directions.

Rows are padded to the longest, so the oldest sequence that waits is stepped with
those of the nearest lengths, under a budget of padded steps.
"""

import bisect
import math
import time
from collections import deque

from .lanes import Batch
from .work import Work

WINDOW = 512  # waiting sequences looked at for like lengths


class Whole:
    """The sequences of a network that needs them whole."""

    def __init__(self, rows: int, steps: int):
        self._rows, self._steps = rows, steps
        self._waiting: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Work) -> None:
        self._waiting.append(work)

    def put_back(self, batch: Batch) -> None:
        """A batch has been stepped, all of it."""

    def take(self) -> Batch:
        """The oldest that waits and its neighbours in length."""
        there: list[Work] = []
        dropped: list[Work] = []
        now = time.perf_counter()
        while self._waiting and len(there) < WINDOW:
            work = self._waiting.popleft()
            (dropped if work.in_vain(now) else there).append(work)
        if not there:
            return Batch([], 0, dropped)
        order = sorted(range(len(there)), key=lambda place: there[place].steps)
        lengths = [there[place].steps for place in order]
        first = order.index(0, bisect.bisect_left(lengths, there[0].steps))
        start, stop = self._around(lengths, first)
        chosen = set(order[start:stop])
        rest = [work for place, work in enumerate(there) if place not in chosen]
        self._waiting.extendleft(reversed(rest))
        return Batch([there[place] for place in chosen], lengths[stop - 1], dropped)

    def _around(self, lengths: list[int], place: int) -> tuple[int, int]:
        """The slice of the sorted `lengths` about `place` that is batched: grown
        to the nearer neighbour while rows and padded steps allow."""
        start, stop = place, place + 1
        while stop - start < self._rows:
            below = lengths[place] - lengths[start - 1] if start else math.inf
            above = lengths[stop] - lengths[place] if stop < len(lengths) else math.inf
            if below == above == math.inf:
                break
            up = above <= below
            longest = lengths[stop] if up else lengths[stop - 1]
            if longest * (stop - start + 1) > self._steps:
                break
            start, stop = (start, stop + 1) if up else (start - 1, stop)
        return start, stop
