"""When the requests of an open loop are due, and an alarm that rings then."""

import asyncio
import signal
import time
from typing import Self

import numpy as np


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start at which independent clients ask, in order."""
    rng = np.random.default_rng(seed)
    count = int(rate * seconds + 10 * (rate * seconds) ** 0.5) + 10
    times = np.cumsum(rng.exponential(1 / rate, count))
    return times[times < seconds].tolist()


class Alarm:
    """Sleeps until a time of `time.perf_counter`, to some 0.1 ms; an event loop's
    own timers count whole milliseconds."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._rings: asyncio.Future[None] | None = None
        self._loop.add_signal_handler(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *error) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._loop.remove_signal_handler(signal.SIGALRM)

    async def at(self, due: float) -> None:
        while (left := due - time.perf_counter()) > 0:
            self._rings = self._loop.create_future()
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6))
            await self._rings

    def _ring(self) -> None:
        if self._rings and not self._rings.done():
            self._rings.set_result(None)
