"""Cellular batching: sequences join and leave a running batch between chunks.

The idea is BatchMaker's (Gao et al., *Low Latency RNN Inference with Cellular
Batching*, EuroSys 2018). A sequence that is under way is a lane: its state and the
steps that are left. Each tick takes the lanes under way and the oldest sequences
that wait, steps them together by one chunk, and puts back what has not ended.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .cost import Cost
from .work import Work

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

    works: list[Work]
    steps: int  # the chunk: rows with fewer left are padded
    dropped: list[Work] = field(default_factory=list)  # nobody waits for them


class Lanes:
    """The sequences of a network whose state can be carried."""

    def __init__(self, rows: int, cost: Cost):
        self._rows, self._cost = rows, cost
        self._share = max(1, rows // 2)  # of lanes, for long ones where others wait
        self._under_way: list[Work] = []
        self._short: deque[Work] = deque()  # those that wait
        self._long: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._under_way) + len(self._short) + len(self._long)

    def add(self, work: Work) -> None:
        (self._long if work.left > LONG_STEPS else self._short).append(work)

    def put_back(self, batch: Batch) -> None:
        """A batch has been stepped; keep those of its works that have steps left."""
        self._under_way = [work for work in batch.works if work.left]

    def take(self) -> Batch:
        """The lanes under way, then the oldest that wait while there is room."""
        now = time.perf_counter()
        works = [work for work in self._under_way if not work.in_vain(now)]
        dropped = [work for work in self._under_way if work.in_vain(now)]
        self._under_way = []
        long = [work for work in works if work.left > LONG_STEPS]
        if self._short and len(works) == self._rows and len(long) > self._share:
            # Long ones stop for others, and go on from where they are.
            stopped = set(long[self._share :])
            works = [work for work in works if work not in stopped]
            self._long.extendleft(reversed(long[self._share :]))
            del long[self._share :]
        longs = len(long)
        while len(works) < self._rows and (self._short or self._long):
            is_long = self._long and (longs < self._share or not self._short)
            work = (self._long if is_long else self._short).popleft()
            if work.in_vain(now):
                dropped.append(work)
                continue
            works.append(work)
            longs += bool(is_long)
        return Batch(works, chunk([work.left for work in works], self._cost), dropped)


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
