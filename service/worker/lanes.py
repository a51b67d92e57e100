"""Cellular batching: sequences join and leave a running batch between chunks.

The idea is BatchMaker's (Gao et al., *Low Latency RNN Inference with Cellular
Batching*, EuroSys 2018). A sequence that is under way is a lane: its state and the
steps that are left. Each tick takes the lanes under way and the oldest sequences
that wait, steps them together by one chunk, and puts back what has not ended.
"""

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from service.callers.fair_queue import CallerId, FairQueue
from service.worker.cost import Cost
from service.worker.lane_shares import Shares
from service.worker.sequence_job import SequenceJob

# A newcomer waits for half a tick on average: a short one where a lane or two run,
# longer where it would share the engine with many anyway. No shorter than TICK_CALLS
# calls cost, since what a call costs is lost.
TICK_SECONDS, LONGEST_TICK = 0.001, 0.0025
TICK_ROWS = 8  # on top of which a tick may be twice as long
TICK_CALLS = 8
LONG_STEPS = 500  # more than these must not keep all others from their lanes
ALONE = 3  # ticks that a lone sequence may take at once, if it ends then


@dataclass(slots=True)
class Batch:
    """What is stepped next."""

    works: list[SequenceJob]
    steps: int  # the chunk: rows with fewer left are padded
    dropped: list[SequenceJob] = field(default_factory=list)  # nobody waits for them


class Lanes:
    """The sequences of a network whose state can be carried."""

    def __init__(self, rows: int, cost: Cost):
        self._rows, self._cost = rows, cost
        self._share = max(1, rows // 2)  # of lanes, for long ones where others wait
        self._under_way: list[SequenceJob] = []
        self._shares = Shares()  # of the lanes
        self._short: FairQueue[SequenceJob] = FairQueue()  # those that wait
        self._long: FairQueue[SequenceJob] = FairQueue()

    def __len__(self) -> int:
        return len(self._under_way) + len(self._short) + len(self._long)

    def add(self, work: SequenceJob) -> None:
        if len(self._under_way) < self._rows and not (self._short or self._long):
            self._under_way.append(work)
            self._shares.add(work.caller)
        else:
            self._queue(work).push(work.caller, work, work.left)

    def put_back(self, batch: Batch) -> None:
        """A batch has been stepped; keep those of its works that have steps left."""
        for work in batch.works:
            if work.at < work.steps:
                self._under_way.append(work)
            else:
                self._shares.add(work.caller, -1)

    def take(self) -> Batch:
        """The lanes under way, then those that wait while there is room; where all
        lanes are taken, some make room for callers that have fewer."""
        now = time.perf_counter()
        works, self._under_way = self._under_way, []
        dropped = [work for work in works if work.in_vain(now)]
        for work in dropped:
            works.remove(work)
            self._shares.add(work.caller, -1)
        if self._short or self._long:
            self._admit(works, dropped, now)
        return Batch(works, chunk([work.left for work in works], self._cost), dropped)

    def _admit(
        self, works: list[SequenceJob], dropped: list[SequenceJob], now: float
    ) -> None:
        """Give lanes to those that wait."""
        longs = sum(map(_long, works))
        if self._short and len(works) == self._rows and longs > self._share:
            # Long ones stop for others, and go on from where they are.
            for work in reversed([w for w in works if _long(w)][self._share :]):
                self._stop(works, work)
            longs = self._share
        while len(works) < self._rows:
            found = self._next(longs, dropped, now)
            if found is None:
                return
            works.append(found)
            self._shares.add(found.caller)
            longs += _long(found)
        if self._short or self._long:
            self._exchange(works, dropped, now)

    def _queue(self, work: SequenceJob) -> FairQueue[SequenceJob]:
        return self._long if _long(work) else self._short

    def _stop(self, works: list[SequenceJob], work: SequenceJob) -> None:
        """Let a lane wait again: it keeps its state, and goes on before other works
        of its caller."""
        works.remove(work)
        self._shares.add(work.caller, -1)
        queue = self._queue(work)
        queue.push_front(work.caller, work, work.left, charged=work.charged)

    def _next(
        self,
        longs: int,
        dropped: list[SequenceJob],
        now: float,
        passed: Container[str | CallerId] = (),
    ) -> SequenceJob | None:
        """The next that waits: a long one while those have less than their share of
        the lanes, or nothing else waits.

        Args:
            longs: lanes that they have.
            passed: owners and callers that are passed over.
        """
        may = longs < self._share or not self._short
        for queue in (self._long, self._short) if may else (self._short,):
            while queue:
                try:
                    work = queue.pop(passed)
                except IndexError:  # all are passed over
                    break
                work.charged = True
                if not work.in_vain(now):
                    return work
                dropped.append(work)
                queue.refund(work.caller, work.left)
        return None

    def _exchange(
        self, works: list[SequenceJob], dropped: list[SequenceJob], now: float
    ) -> None:
        """Give lanes of callers that have many to others who wait and have few. None
        goes back and forth: who gave it has more still."""
        while True:
            longs = sum(map(_long, works))
            found = self._next(longs, dropped, now, self._shares)
            if found is None:
                return
            giver = self._shares.giver(found.caller)
            lanes = [work for work in reversed(works) if work.caller == giver]
            lane = max(lanes, key=attrgetter("left"))  # who would keep it for longest
            if _long(found) and not _long(lane) and longs >= self._share:
                self._queue(found).push_front(found.caller, found, found.left)
                return
            self._stop(works, lane)
            works.append(found)
            self._shares.add(found.caller)


def _long(work: SequenceJob) -> bool:
    return work.steps - work.at > LONG_STEPS


def chunk(left: Sequence[int], cost: Cost) -> int:
    """How many steps to take of lanes that have so many left: the number with the
    least time for each useful step, within the time that a tick may take.

    A short chunk pays for the call more often, a long one computes padding for the
    lanes that end inside it. The best is always where some lane ends.
    """
    rows = len(left)
    if not rows:
        return 0
    step = cost.of_step(rows)
    seconds = min(TICK_SECONDS * (1 + rows / TICK_ROWS), LONGEST_TICK)
    limit = max(1, int(max(seconds, TICK_CALLS * cost.call) / step))
    order = sorted(left)
    if order[-1] <= (ALONE * limit if rows == 1 else limit + limit // 2):
        limit = order[-1]  # no tick of its own for a short rest
    best, least, ended = limit, float("inf"), 0
    for place, steps in enumerate(order):
        steps = min(steps, limit)
        price = (cost.call + steps * step) / (ended + (rows - place) * steps)
        if price < least:
            best, least = steps, price
        if steps == limit:
            break
        ended += steps
    return best
