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
        self._always = False  # since then there was enough to do
        self._idle = False  # before, there was not

    def add(self, steps: int) -> None:
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

    def computed(self, steps: int, seconds: float) -> None:
        """A worker's call took so long for so many."""
        self._best = max(FORGET * self._best, steps / max(seconds, 1e-9))
        self._computed += steps
        if self.steps <= steps:  # hardly more was there
            self._always = False
        now = time.perf_counter()
        spent = now - self._since
        if spent < WINDOW_SECONDS:
            return
        if self._always and spent < LONGEST_SECONDS:
            rate = self._computed / spent
            self._rate += (rate - self._rate) * (NEWEST if self._rate else 1)
        else:
            self._rate = 0.0 if self._idle else self._rate  # for long not known
        self._idle = not self._always
        self._since, self._computed, self._always = now, 0, True

    def seconds(self, workers: int) -> float:
        """Until all is computed, so far as can be told: 0 where nothing ever was."""
        rate = self._rate or self._best * max(workers, 1)
        return self.waiting / rate if rate else 0.0
