"""The steps that wait for the workers, and the time that they will take.

Overload is told early: a request that would wait for longer than it may is refused
at once, rather than computed for nobody (Nygard, *Release It!*; Beyer et al., *Site
Reliability Engineering*, chapter 21).
"""

import math

FORGET = 0.995  # of the fastest call, with each one after it
LEARN = 0.1  # of what the newest answer tells
LEAST_SECONDS = 0.05  # a forecast that is worth comparing
MOST = 10.0  # times that a forecast may be wrong


class Queue:
    """One model's."""

    def __init__(self) -> None:
        self.steps = 0  # admitted and not yet computed
        self.rate = 0.0  # steps a second of one worker, at its best of late

    def computed(self, steps: int, seconds: float) -> None:
        """An engine call took so long for so many."""
        self.rate = max(steps / max(seconds, 1e-9), FORGET * self.rate)

    @property
    def seconds(self) -> float:
        """Of one worker, for all; 0 while none has computed any."""
        return self.steps / self.rate if self.rate else 0.0


class Backlog:
    """All models'; they share the workers."""

    def __init__(self) -> None:
        self.queues: dict[int, Queue] = {}  # by model
        self.workers = 0
        self.refused = -math.inf  # when a request last was, of `time.perf_counter`
        # How much longer it really takes than the engine's calls alone: others have
        # the machine's cores too, and what is between the calls takes time.
        self._stretch = 1.0

    def queue(self, model: int) -> Queue:
        return self.queues.setdefault(model, Queue())

    @property
    def seconds(self) -> float:
        """Until all is computed, so far as can be told."""
        waiting = sum(queue.seconds for queue in self.queues.values())
        return self._stretch * waiting / max(self.workers, 1)

    def answered(self, forecast: float, seconds: float) -> None:
        """What was to take so long took so long."""
        if forecast < LEAST_SECONDS:
            return
        wrong = min(max(seconds / forecast, 1 / MOST), MOST)
        self._stretch *= 1 + LEARN * (wrong - 1)
        self._stretch = min(max(self._stretch, 1 / MOST), MOST)
