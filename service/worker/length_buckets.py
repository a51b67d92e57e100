"""Batching of whole sequences, for networks that read them in both directions.

Rows are padded to the longest, so the sequence whose turn it is is stepped with those
of the nearest lengths, under a budget of padded steps.
"""

import bisect
import math
import time
from functools import partial

from service.callers.fair_queue import FairQueue
from service.worker.lanes import Batch
from service.worker.sequence_job import SequenceJob

WINDOW = 512  # waiting sequences looked at for like lengths


class LengthBuckets:
    """The sequences of a network that needs them whole."""

    def __init__(self, rows: int, steps: int):
        self._rows, self._steps = rows, steps
        self._waiting: FairQueue[SequenceJob] = FairQueue()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: SequenceJob) -> None:
        self._waiting.push(work.caller, work, work.steps)

    def put_back(self, batch: Batch) -> None:
        """A batch has been stepped, all of it."""

    def take(self) -> Batch:
        """The next that waits and its neighbours in length."""
        batch = Batch([], 0)
        choose = partial(self._choose, batch, time.perf_counter())
        while self._waiting and not batch.works:
            self._waiting.select(WINDOW, choose)
        return batch

    def _choose(
        self, batch: Batch, now: float, there: list[SequenceJob]
    ) -> dict[int, int]:
        """The places of those that are put into the batch, and what each costs; and
        of those that are dropped, which cost nothing."""
        taken = {place: 0 for place, work in enumerate(there) if work.in_vain(now)}
        batch.dropped += [there[place] for place in taken]
        order = [place for place in range(len(there)) if place not in taken]
        if not order:
            return taken
        next_one = order[0]
        order.sort(key=lambda place: there[place].steps)
        lengths = [there[place].steps for place in order]
        first = order.index(
            next_one, bisect.bisect_left(lengths, there[next_one].steps)
        )
        start, stop = self._around(lengths, first)
        batch.steps = lengths[stop - 1]
        for place in order[start:stop]:
            batch.works.append(there[place])
            taken[place] = there[place].steps
        return taken

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
