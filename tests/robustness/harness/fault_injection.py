"""The service with faults built in: `python -m tests.robustness.harness.fault_injection serve`.

Marked sequences and environment variables select the faults; without them it is the
service as it is. Worker processes import this module too, since it is the main module
of their service, so their engines have the faults.
"""

import os
import time

import numpy as np

from service.__main__ import app
from service.worker import engine
from service.worker.engine import Engine, Engines

MODULE = "tests.robustness.harness.fault_injection"
# The first feature of any step; no valid sequence contains these numbers.
RAISES, ABORTS, HANGS = 77771.0, 77772.0, 77773.0
EXTREME = 1e35  # larger numbers yield NaN, as in TensorFlow
# Environment variables.
LOAD_SECONDS = "ROBUSTNESS_LOAD_SECONDS"  # added to each engine's load
HANGING_LOAD = "ROBUSTNESS_HANGING_LOAD"  # NAME or NAME@VERSION, ...: never loaded
CALL_SECONDS = "ROBUSTNESS_CALL_SECONDS"  # added to each call of an engine
LEAK_BYTES = "ROBUSTNESS_LEAK_BYTES"  # leaked by the serving process at each request


class FaultyEngine:
    """An engine that fails on marked sequences."""

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
            os._exit(134)  # the exit code of abort(), without a core file
        if (first == HANGS).any():
            time.sleep(3600)
        time.sleep(self._seconds)
        probabilities, after = self._inner.step(frames, lengths, state)
        probabilities[(np.abs(frames) >= EXTREME).any((1, 2))] = np.nan
        return probabilities, after


def inject_faults(engines: Engines) -> None:
    """Wrap every engine in a `FaultyEngine`."""
    assert isinstance(engines, dict)
    for name, load in list(engines.items()):

        def load_faulty(bundle, settings, load=load):
            name, version = bundle.metadata.name, bundle.metadata.version
            hanging = os.environ.get(HANGING_LOAD, "").split(",")
            if name in hanging or f"{name}@{version}" in hanging:
                time.sleep(3600)
            time.sleep(float(os.environ.get(LOAD_SECONDS, 0)))
            return FaultyEngine(load(bundle, settings))

        engines[name] = load_faulty


def leak(size: int) -> None:
    """Leak so many bytes at each request."""
    from service.app import Service

    leaked: list[bytearray] = []
    call = Service.__call__

    def leaking(self, scope, receive, send):
        leaked.append(bytearray(size))
        return call(self, scope, receive, send)

    Service.__call__ = leaking


if __name__ in ("__main__", "__mp_main__"):  # the service itself, and its workers
    inject_faults(engine.ENGINES)
if __name__ == "__main__":
    if size := int(os.environ.get(LEAK_BYTES, 0)):
        leak(size)
    app(prog_name=f"python -m {MODULE}")
