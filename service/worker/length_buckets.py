"""Batching by length, for networks that read whole sequences (bidirectional ones).

Rows are padded to the longest. So the next sequence in fair order is computed together
with those of the nearest lengths: with as many as give the least time for each useful
step, up to a maximum of padded steps.
"""

import bisect
import math
import time
from functools import partial

from service.callers.fair_queue import FairQueue
from service.worker.batch import Batch, SequenceJob
from service.worker.cost import Cost

WINDOW = 512  # waiting sequences among which similar lengths are looked for


class LengthBuckets:
    """The waiting sequences of a network that reads them whole."""

    def __init__(self, rows: int, steps: int, cost: Cost):
        """
        Args:
            rows: at most, in a batch.
            steps: at most, in a batch, padding included.
            cost: of the engine's calls.
        """
        self._rows, self._steps, self._cost = rows, steps, cost
        self._waiting: FairQueue[SequenceJob] = FairQueue()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: SequenceJob) -> None:
        self._waiting.push(job.caller, job, job.steps)

    def put_back(self, batch: Batch) -> None:
        """Do nothing: after one engine call, all jobs of a batch are done."""

    def take(self) -> Batch:
        """Return the next waiting job and its neighbours in length."""
        batch = Batch([], 0)
        choose = partial(self._choose, batch, time.perf_counter())
        while self._waiting and not batch.jobs:
            self._waiting.select(WINDOW, choose)
        return batch

    def _choose(
        self, batch: Batch, now: float, jobs: list[SequenceJob]
    ) -> dict[int, int]:
        """Add some jobs to the batch. Return the index and the cost of each, and those
        of abandoned jobs, which cost nothing; see `FairQueue.select`."""
        taken = {index: 0 for index, job in enumerate(jobs) if job.is_abandoned(now)}
        batch.dropped += [jobs[index] for index in taken]
        order = [index for index in range(len(jobs)) if index not in taken]
        if not order:
            return taken
        first = order[0]
        order.sort(key=lambda index: jobs[index].steps)
        lengths = [jobs[index].steps for index in order]
        middle = order.index(first, bisect.bisect_left(lengths, jobs[first].steps))
        start, stop = self._neighbours(lengths, middle)
        batch.steps = lengths[stop - 1]
        for index in order[start:stop]:
            batch.jobs.append(jobs[index])
            taken[index] = jobs[index].steps
        return taken

    def _neighbours(self, lengths: list[int], middle: int) -> tuple[int, int]:
        """Return the slice of the sorted `lengths` around index `middle` that is
        batched: of those that grow to the nearer neighbour, while rows and steps allow,
        the one with the least time for each step without padding."""
        start, stop, useful = middle, middle + 1, lengths[middle]
        best, least = (start, stop), self._seconds(1, useful) / useful
        while stop - start < self._rows:
            below = lengths[middle] - lengths[start - 1] if start else math.inf
            above = lengths[stop] - lengths[middle] if stop < len(lengths) else math.inf
            if below == above == math.inf:
                break
            up = above <= below
            longest = lengths[stop] if up else lengths[stop - 1]
            if longest * (stop - start + 1) > self._steps:
                break
            start, stop = (start, stop + 1) if up else (start - 1, stop)
            useful += lengths[stop - 1] if up else lengths[start]
            price = self._seconds(stop - start, lengths[stop - 1]) / useful
            if price <= least:
                best, least = (start, stop), price
        return best

    def _seconds(self, rows: int, steps: int) -> float:
        """Return the time of a call with so many rows and steps, padding included."""
        return self._cost.call + steps * self._cost.seconds_per_step(rows)
