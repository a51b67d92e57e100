"""Estimates how long a model's waiting steps will take.

Overload is reported early: a request that would wait beyond its deadline is refused at
once, rather than computed for no one (Beyer et al., *Site Reliability Engineering*,
chapter 21). The duration of engine calls alone underestimates the wait, and the serving
process's clock overestimates it, since that process may be stalled itself. So workers
report the time that they spend while jobs wait, between engine calls too.
"""

import asyncio
import math

WINDOW_SECONDS = 0.4  # of workers' time, for one measurement of the rate
MAX_SPENT_SECONDS = 1.0  # after a longer call, the machine was stalled
MIN_ROWS = 8  # calls of fewer rows do not show the rate under load
BODY_WEIGHT = 0.05  # of the newest body in the mean of bytes for each step
LAG_WEIGHT = 0.05  # of the newest answer in the mean lag
RATE_WEIGHT = 0.5  # of the newest window in the mean rate
BEST_DECAY = 0.999  # of the fastest call's rate, with each later call

FAIR_STEPS = 500  # of a turn of a caller: few sequences are longer

QuotaKey = str | int  # the owner of an API key, or else a connection


class WaitEstimate:
    """The waiting steps of one model, and the rate at which workers compute them."""

    def __init__(self) -> None:
        self.steps = 0  # admitted and not yet computed
        self.refused = -math.inf  # time of the last refusal (`time.perf_counter`)
        self.lag = 0.0  # seconds from a worker's answer until it is handled here
        self._reserved = 0.0  # steps of requests whose bodies are not parsed yet
        self._bytes_per_step = 200.0  # of a body
        self._best_rate = 0.0  # steps a second, in one worker's engine calls
        self._rate = 0.0  # steps a second of one worker under load; 0: not known
        self._computed, self._spent = 0, 0.0  # steps and seconds of this window
        self._by_caller: dict[QuotaKey, int] = {}  # waiting steps

    def add(self, steps: int) -> None:
        """Count admitted steps; a negative number counts those that are settled."""
        if self.steps <= 0 < steps:  # the workers were idle: the old rate says nothing
            self._rate, self._computed, self._spent = 0.0, 0, 0.0
        self.steps += steps

    def reserve(self, size: int) -> None:
        """Count a body of so many bytes that will be parsed in this iteration of the
        event loop. Of many that arrive at once, each would see the same room."""
        if not self._reserved:
            asyncio.get_running_loop().call_soon(self._release)
        self._reserved += max(1.0, size / self._bytes_per_step)

    def observe_body(self, size: int, steps: int) -> None:
        """Learn from a parsed body of so many bytes and steps."""
        ratio = size / max(steps, 1)
        self._bytes_per_step += BODY_WEIGHT * (ratio - self._bytes_per_step)

    def _release(self) -> None:
        self._reserved = 0.0

    @property
    def waiting(self) -> float:
        """Waiting steps, including reserved ones."""
        return self.steps + self._reserved

    def observe_batch(
        self, steps: int, rows: int, seconds: float, spent: float
    ) -> None:
        """Learn from a worker's engine call.

        Args:
            seconds: duration of the call.
            spent: seconds since the worker's previous call, if jobs were waiting.
        """
        self._best_rate = max(BEST_DECAY * self._best_rate, steps / max(seconds, 1e-9))
        self._computed += steps
        self._spent += spent
        if rows < MIN_ROWS or spent > MAX_SPENT_SECONDS:
            self._computed, self._spent = 0, 0.0
        elif self._spent > WINDOW_SECONDS:
            rate = self._computed / self._spent
            self._rate += (rate - self._rate) * (RATE_WEIGHT if self._rate else 1)
            self._computed, self._spent = 0, 0.0

    def observe_lag(self, seconds: float) -> None:
        """Learn from an answer that is handled so long after it was computed."""
        self.lag += LAG_WEIGHT * (seconds - self.lag)

    def exceeds(self, key: QuotaKey, steps: int, seconds: float, workers: int) -> bool:
        """Return whether new steps of a caller will certainly take longer than so many
        seconds; False while the workers' rate is not known."""
        if not self._rate or self.seconds(self.waiting, workers) <= seconds:
            return False
        return self.seconds(self.steps_before(key, steps), workers) > seconds

    def seconds(self, steps: float, workers: int) -> float:
        """Return the estimated seconds to compute so many steps; 0 before the first
        call."""
        rate = (self._rate or self._best_rate) * max(workers, 1)
        return steps / rate if rate else 0.0

    def charge(self, key: QuotaKey, steps: int) -> None:
        """Count waiting steps of a caller; a negative number removes them. Anonymous
        callers are not counted."""
        if not key:
            return
        waiting = self._by_caller.get(key, 0) + steps
        if waiting > 0:
            self._by_caller[key] = waiting
        else:
            self._by_caller.pop(key, None)

    def of(self, key: QuotaKey) -> int:
        """Return a caller's waiting steps."""
        return self._by_caller.get(key, 0)

    def steps_before(self, key: QuotaKey, steps: int) -> float:
        """Return the steps that are computed until new ones of a caller are done.
        Callers get fair turns, so of each other caller no more steps come first than
        of this one, or than a sequence has."""
        if not key:
            return self.waiting
        own = self.of(key) + steps
        others = len(self._by_caller)
        return min(self.waiting, own + others * max(own, FAIR_STEPS))
