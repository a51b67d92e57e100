"""Cellular batching: sequences join and leave a running batch between engine calls.

The idea is BatchMaker's (Gao et al., *Low Latency RNN Inference with Cellular
Batching*, EuroSys 2018). Each row of the batch is a lane. A running sequence occupies
a lane with its state and the steps that remain. Each engine call advances all lanes
by a few steps (`cost.choose_steps`); then sequences that are done leave, and the
oldest waiting ones take the free lanes.
"""

import time
from collections.abc import Container
from operator import attrgetter
from typing import TypeVar

from service.callers.fair_queue import CallerId, FairQueue
from service.worker.batch import Batch, SequenceJob
from service.worker.cost import Cost, choose_steps

LONG_STEPS = 500  # sequences with more steps left get at most half of the lanes
MIN_SHARE = (
    2  # a caller with fewer than 1/MIN_SHARE of another's lanes gets one of them
)

T = TypeVar("T")


class Lanes:
    """The running and waiting sequences of a network whose state can be carried."""

    def __init__(self, rows: int, cost: Cost):
        self._rows, self._cost = rows, cost
        self._max_long = max(1, rows // 2)  # lanes of long jobs, while short ones wait
        self._running: list[SequenceJob] = []
        self._counts = LaneCounts()
        self._short: FairQueue[SequenceJob] = FairQueue()  # waiting jobs
        self._long: FairQueue[SequenceJob] = FairQueue()

    def __len__(self) -> int:
        return len(self._running) + len(self._short) + len(self._long)

    def add(self, job: SequenceJob) -> None:
        if len(self._running) < self._rows and not (self._short or self._long):
            self._running.append(job)
            self._counts.add(job.caller)
        else:
            self._queue_of(job).push(job.caller, job, job.remaining)

    def put_back(self, batch: Batch) -> None:
        """Keep the jobs of a computed batch that have steps left."""
        for job in batch.jobs:
            if job.position < job.steps:
                self._running.append(job)
            else:
                self._counts.remove(job.caller)

    def take(self) -> Batch:
        """Return the next batch: the running jobs and, while there are free lanes,
        waiting ones. If all lanes are taken, callers with many lanes give some to
        callers with few."""
        now = time.perf_counter()
        jobs, self._running = self._running, []
        dropped = [job for job in jobs if job.is_abandoned(now)]
        for job in dropped:
            self._release(jobs, job)
        if self._short or self._long:
            self._fill(jobs, dropped, now)
        steps = choose_steps([job.remaining for job in jobs], self._cost)
        return Batch(jobs, steps, dropped)

    def _fill(
        self, jobs: list[SequenceJob], dropped: list[SequenceJob], now: float
    ) -> None:
        """Give lanes to waiting jobs."""
        long = sum(map(_is_long, jobs))
        if self._short and len(jobs) == self._rows and long > self._max_long:
            for lane in reversed([j for j in jobs if _is_long(j)][self._max_long :]):
                self._preempt(jobs, lane)
            long = self._max_long
        while len(jobs) < self._rows:
            job = self._next(long, dropped, now)
            if job is None:
                return
            self._run(jobs, job)
            long += _is_long(job)
        # All lanes are taken. A caller that gives a lane still has more lanes than
        # the one that gets it, so no lane goes back and forth.
        while (self._short or self._long) and (
            job := self._next(long, dropped, now, self._counts)
        ):
            donor = self._counts.donor(job.caller)
            lanes = [lane for lane in reversed(jobs) if lane.caller == donor]
            lane = max(lanes, key=attrgetter("remaining"))  # would keep it the longest
            if _is_long(job) and not _is_long(lane) and long >= self._max_long:
                self._queue_of(job).push_front(job.caller, job, job.remaining)
                return
            self._preempt(jobs, lane)
            self._run(jobs, job)
            long += _is_long(job) - _is_long(lane)

    def _next(
        self,
        long: int,
        dropped: list[SequenceJob],
        now: float,
        skip: Container[str | CallerId] = (),
    ) -> SequenceJob | None:
        """Take the next waiting job out of its queue: a long one while long jobs have
        less than their share of the lanes, or no short one waits.

        Args:
            long: number of lanes with long jobs.
            dropped: abandoned jobs on the way are appended.
            skip: owners and callers that are passed over.
        """
        take_long = long < self._max_long or not self._short
        for queue in (self._long, self._short) if take_long else (self._short,):
            while queue:
                try:
                    job = queue.pop(skip)
                except IndexError:  # all are passed over
                    break
                job.charged = True
                if not job.is_abandoned(now):
                    return job
                dropped.append(job)
                queue.refund(job.caller, job.remaining)
        return None

    def _queue_of(self, job: SequenceJob) -> FairQueue[SequenceJob]:
        return self._long if _is_long(job) else self._short

    def _run(self, jobs: list[SequenceJob], job: SequenceJob) -> None:
        jobs.append(job)
        self._counts.add(job.caller)

    def _release(self, jobs: list[SequenceJob], job: SequenceJob) -> None:
        jobs.remove(job)
        self._counts.remove(job.caller)

    def _preempt(self, jobs: list[SequenceJob], job: SequenceJob) -> None:
        """Make a running job wait. It keeps its state, and will continue before other
        jobs of its caller."""
        self._release(jobs, job)
        queue = self._queue_of(job)
        queue.push_front(job.caller, job, job.remaining, charged=job.charged)


def _is_long(job: SequenceJob) -> bool:
    return job.steps - job.position > LONG_STEPS


class LaneCounts:
    """The number of lanes of each owner and each connection.

    As a container it has the owners and callers that must not take another's lane:
    no one has more than twice as many lanes as they would have then.
    """

    def __init__(self) -> None:
        self._owners: dict[str, int] = {}
        self._connections: dict[str, dict[int, int]] = {}  # of each owner

    def add(self, caller: CallerId, lanes: int = 1) -> None:
        owner, connection = caller
        _add(self._owners, owner, lanes)
        connections = self._connections.setdefault(owner, {})
        _add(connections, connection, lanes)
        if not connections:
            del self._connections[owner]

    def remove(self, caller: CallerId) -> None:
        self.add(caller, -1)

    def __contains__(self, key: object) -> bool:
        owner, connection = key if isinstance(key, tuple) else (key, None)
        if not self._has_share(owner):
            return False
        connections = self._connections.get(owner, {})
        most = max(connections.values(), default=0)
        lanes = 0 if connection is None else connections.get(connection, 0)
        return _is_share(lanes, most)

    def donor(self, caller: CallerId) -> CallerId:
        """Return who gives a lane to a caller that has too few: the connection with
        the most lanes, of the owner with the most lanes. If no owner has much more
        than the caller's, it is a connection of the same owner."""
        owner = caller[0]
        if not self._has_share(owner):
            owner = max(self._owners, key=self._owners.__getitem__)
        connections = self._connections[owner]
        return owner, max(connections, key=connections.__getitem__)

    def _has_share(self, owner: str) -> bool:
        return _is_share(self._owners.get(owner, 0), max(self._owners.values()))


def _add(counts: dict[T, int], key: T, count: int) -> None:
    counts[key] = counts.get(key, 0) + count
    if not counts[key]:
        del counts[key]


def _is_share(lanes: int, most: int) -> bool:
    return MIN_SHARE * (lanes + 1) > most
