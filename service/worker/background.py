"""Loading a model in the background, while a worker serves others.

Loading consists mostly of engine calls, for the golden answers. They run when the
worker is idle, on a thread of low priority. While versions were loaded without a
pause, the 99th percentile of request latency was 1.4 times its normal value, and 2.5
times without these two measures (`bench.versions`).
"""

import time
from collections.abc import Callable

import numpy as np

from service.worker.engine import Engine

MAX_WAIT_SECONDS = 0.05  # for the worker to become idle
POLL_SECONDS = 0.0005


class BackgroundEngine:
    """An engine whose calls wait until the worker is idle."""

    def __init__(self, inner: Engine, idle: Callable[[], bool]):
        self.name, self.inner, self._idle = inner.name, inner, idle

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not self._idle() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self.inner.step(frames, lengths, state)
