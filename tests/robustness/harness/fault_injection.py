"""The service with faults built in: `python -m tests.robustness.harness.fault_injection serve`.

A worker imports this too, as the module that its service was started from, and so has
the engine that fails. What goes wrong is told by what a sequence holds, and by
variables; without them it is the service as it is.
"""

import os
import time

import numpy as np

from service.__main__ import app
from service.worker import engine
from service.worker.engine import Engine, Engines

# In the first feature of any step: no such number is in a good sequence.
RAISES, ABORTS, HANGS = 77771.0, 77772.0, 77773.0
EXTREME = 1e35  # from here on not a number comes out, as of TensorFlow
LOAD_SECONDS = "WITHSTAND_LOAD_SECONDS"  # more, for each engine that is loaded
# NAME or NAME@VERSION, after a comma more: their engines never return from a load.
HANGING_LOAD = "WITHSTAND_HANGING_LOAD"
CALL_SECONDS = "WITHSTAND_CALL_SECONDS"  # more, for each call of one
LEAK_BYTES = "WITHSTAND_LEAK_BYTES"  # kept of each request, by the serving process


class Sabotaged:
    """An engine that a marked sequence makes fail."""

    def __init__(self, inner: Engine):
        self._inner, self.name = inner, inner.name
        self._seconds = float(os.environ.get(CALL_SECONDS, 0))

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        first = frames[:, :, 0]
        if (first == RAISES).any():
            raise RuntimeError("injected")
        if (first == ABORTS).any():
            os._exit(134)  # as abort() ends it, but without a core file
        if (first == HANGS).any():
            time.sleep(3600)
        time.sleep(self._seconds)
        probabilities, after = self._inner.step(frames, lengths, state)
        probabilities[(np.abs(frames) >= EXTREME).any((1, 2))] = np.nan
        return probabilities, after


def sabotage(engines: Engines) -> None:
    """Put such an engine in the place of each."""
    assert isinstance(engines, dict)
    for name, make in list(engines.items()):

        def made(found, settings, make=make):
            name, version = found.metadata.name, found.metadata.version
            hanging = os.environ.get(HANGING_LOAD, "").split(",")
            if name in hanging or f"{name}@{version}" in hanging:
                time.sleep(3600)
            time.sleep(float(os.environ.get(LOAD_SECONDS, 0)))
            return Sabotaged(make(found, settings))

        engines[name] = made


def leak(size: int) -> None:
    """Keep so many bytes of each request."""
    from service.app import Service

    kept: list[bytearray] = []
    call = Service.__call__

    def leaking(self, scope, receive, send):
        kept.append(bytearray(size))
        return call(self, scope, receive, send)

    Service.__call__ = leaking


if __name__ in ("__main__", "__mp_main__"):  # as what is started, and in its workers
    sabotage(engine.ENGINES)
if __name__ == "__main__":
    if size := int(os.environ.get(LEAK_BYTES, 0)):
        leak(size)
    app(prog_name="python -m tests.robustness.harness.fault_injection")
