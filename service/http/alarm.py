"""A deadline that is set and cleared often, and seldom comes."""

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Calls back when time is up; to set and to clear it costs next to nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]):
        self._loop, self._ring = loop, ring
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._due < math.inf

    def set(self, seconds: float) -> None:
        """Ring after so many seconds, and at no other time."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def clear(self) -> None:
        """Don't ring. The timer goes on, to be used again."""
        self._due = math.inf

    def cancel(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Let go of the timer, and of whom to call."""
        self.cancel()
        self._due, self._ring = math.inf, _nothing

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._due:
            self._due = math.inf
            self._ring()
        elif self.is_set:
            self._timer = self._loop.call_at(self._due, self._look)


def _nothing() -> None:
    pass
