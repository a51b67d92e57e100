"""The steps that wait, and the time that they will take.

Overload is told early: a request that would wait for longer than it may is refused
at once, rather than computed for nobody (Beyer et al., *Site Reliability
Engineering*, chapter 21). What a call of the engine takes says too little about it,
and what this process sees of the clock too much, since it may stand still itself: so
the workers tell what time they spend while jobs wait there, between their calls too.
"""

import asyncio
import math

WINDOW_SECONDS = 0.4  # of workers' time
LONGEST_SECONDS = 1.0  # of a call: else the machine stood still
NEWEST_BODY = 0.05  # what the newest body says
FORGET = 0.999  # of the fastest call, with each one after it
ENOUGH_ROWS = 8  # in a call, of which it is seen what many take
NEWEST_LAG = 0.05  # what the newest answer says of how late it is heard
NEWEST = 0.5  # what the newest window counts against all before

ITEM_STEPS = 500  # of a caller's turn: a sequence's, seldom more

Waiter = str | int  # the owner of an API key, or else a connection


class WaitEstimate:
    """One model's."""

    def __init__(self) -> None:
        self.steps = 0  # admitted and not yet computed
        self.refused = -math.inf  # when a request last was, of `time.perf_counter`
        self.lag = 0.0  # seconds, from a worker's answer until it is heard of here
        self._reserved = 0.0  # steps of requests that were let in, and not read yet
        self._bytes = 200.0  # of a body, for each step
        self._best = 0.0  # steps a second, of one worker's call
        self._rate = 0.0  # of one worker, while it had enough to do
        self._computed, self._spent = 0, 0.0  # in this window: steps, seconds
        self._callers: dict[Waiter, int] = {}  # steps that wait

    def add(self, steps: int) -> None:
        if self.steps <= 0 < steps:  # it was empty: what it is able to is not known
            self._rate, self._computed, self._spent = 0.0, 0, 0.0
        self.steps += steps

    def reserve(self, size: int) -> None:
        """A request whose body has so many bytes is let in; it will be read before
        others come. Many may come at a time, and each would find the same room."""
        if not self._reserved:
            asyncio.get_running_loop().call_soon(self._forget)
        self._reserved += max(1.0, size / self._bytes)

    def observe_body(self, size: int, steps: int) -> None:
        """A body of so many bytes had so many steps."""
        self._bytes += NEWEST_BODY * (size / max(steps, 1) - self._bytes)

    def _forget(self) -> None:
        self._reserved = 0.0

    @property
    def waiting(self) -> float:
        """Steps, also those that were promised."""
        return self.steps + self._reserved

    def computed(self, steps: int, rows: int, seconds: float, spent: float) -> None:
        """A worker's call was for so many steps, of so many sequences.

        Args:
            seconds: that it took.
            spent: since the worker's last one, if jobs have waited since.
        """
        self._best = max(FORGET * self._best, steps / max(seconds, 1e-9))
        self._computed += steps
        self._spent += spent
        if rows < ENOUGH_ROWS or spent > LONGEST_SECONDS:
            self._computed, self._spent = 0, 0.0  # that says nothing
        elif self._spent > WINDOW_SECONDS:
            rate = self._computed / self._spent
            self._rate += (rate - self._rate) * (NEWEST if self._rate else 1)
            self._computed, self._spent = 0, 0.0

    def observe_lag(self, seconds: float) -> None:
        """An answer was heard so long after it had been computed."""
        self.lag += NEWEST_LAG * (seconds - self.lag)

    def exceeds(self, caller: Waiter, steps: int, seconds: float, workers: int) -> bool:
        """Returns whether new steps of a caller will certainly take longer than so many
        seconds; False while the workers' rate is not known."""
        if not self._rate or self.seconds(self.waiting, workers) <= seconds:
            return False
        return self.seconds(self.before(caller, steps), workers) > seconds

    def seconds(self, steps: float, workers: int) -> float:
        """Until so many steps are computed, as far as can be told: 0 where nothing ever
        was."""
        rate = (self._rate or self._best) * max(workers, 1)
        return steps / rate if rate else 0.0

    def charge(self, caller: Waiter, steps: int) -> None:
        """So many more steps of a caller wait, or fewer; nobody's are not told apart."""
        if not caller:
            return
        waiting = self._callers.get(caller, 0) + steps
        if waiting > 0:
            self._callers[caller] = waiting
        else:
            self._callers.pop(caller, None)

    def of(self, caller: Waiter) -> int:
        """Steps of a caller that wait."""
        return self._callers.get(caller, 0)

    def before(self, caller: Waiter, steps: int) -> float:
        """Steps that are computed before new ones of a caller are done: workers take
        callers in fair turns, so that of another no more come first than of this one,
        or than a sequence has."""
        if not caller:
            return self.waiting
        own = self.of(caller) + steps
        others = len(self._callers)
        return min(self.waiting, own + others * max(own, ITEM_STEPS))
