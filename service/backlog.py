"""The steps that wait, and the time that they will take.

Overload is told early: a request that would wait for longer than it may is refused
at once, rather than computed for nobody (Beyer et al., *Site Reliability
Engineering*, chapter 21). What the engine can do at its best says little about a
machine that has other work too, so what counts is how fast a queue that is never
empty has really become shorter of late.
"""

import asyncio
import math
import time

WINDOW_SECONDS = 0.2
LONGEST_SECONDS = 1.0  # of a window: else a worker hung, or all were dead
NEWEST_BODY = 0.05  # what the newest body says
FORGET = 0.999  # of the fastest call, with each one after it
ENOUGH_ROWS = 8  # in a call, of which it is seen what many take
NEWEST = 0.5  # what the newest window counts against all before


class Queue:
    """One model's."""

    def __init__(self) -> None:
        self.steps = 0  # admitted and not yet computed
        self.refused = -math.inf  # when a request last was, of `time.perf_counter`
        self._promised = 0.0  # steps of requests that were let in, and not read yet
        self._bytes = 200.0  # of a body, for each step
        self._best = 0.0  # steps a second, of one worker's call
        self._rate = 0.0  # of all workers, while they had enough to do
        self._since = time.perf_counter()
        self._computed = 0

    def add(self, steps: int) -> None:
        if self.steps <= 0 < steps:  # it was empty: what it is able to is not known
            self._rate, self._since, self._computed = 0.0, time.perf_counter(), 0
        self.steps += steps

    def promise(self, size: int) -> None:
        """A request whose body has so many bytes is let in; it will be read before
        others come. Many may come at a time, and each would find the same room."""
        if not self._promised:
            asyncio.get_running_loop().call_soon(self._forget)
        self._promised += max(1.0, size / self._bytes)

    def read(self, size: int, steps: int) -> None:
        """A body of so many bytes had so many steps."""
        self._bytes += NEWEST_BODY * (size / max(steps, 1) - self._bytes)

    def _forget(self) -> None:
        self._promised = 0.0

    @property
    def waiting(self) -> float:
        """Steps, also those that were promised."""
        return self.steps + self._promised

    def computed(self, steps: int, seconds: float, rows: int) -> None:
        """A worker's call took so long for so many, of so many sequences."""
        self._best = max(FORGET * self._best, steps / max(seconds, 1e-9))
        self._computed += steps
        now = time.perf_counter()
        spent = now - self._since
        if rows < ENOUGH_ROWS or spent > LONGEST_SECONDS:
            self._since, self._computed = now, 0  # that says nothing
        elif spent > WINDOW_SECONDS:
            rate = self._computed / spent
            self._rate += (rate - self._rate) * (NEWEST if self._rate else 1)
            self._since, self._computed = now, 0

    def late(self, seconds: float) -> bool:
        """Whether it will certainly take longer to compute all. While it is not known
        what the workers are able to, nothing is."""
        return self._rate > 0 and self.waiting / self._rate > seconds

    def seconds(self, workers: int) -> float:
        """Until all is computed, as far as can be told: 0 where nothing ever was."""
        rate = self._rate or self._best * max(workers, 1)
        return self.waiting / rate if rate else 0.0
