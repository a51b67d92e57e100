"""What an engine call costs, measured: it decides how long a chunk may be."""

import time
from dataclasses import dataclass

import numpy as np

from model.bundle.bundle import Metadata
from service.worker.engine import Engine

TICK = 60e-6  # seconds of our own Python around each engine call
SHORT, LONG, WIDE = 1, 17, 8  # steps, steps and rows of the calls that are timed
RUNS = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a call: call + steps * (step + rows * row)."""

    call: float = 100e-6
    step: float = 10e-6
    row: float = 10e-6

    def of_step(self, rows: int) -> float:
        """Seconds of each step of a call of so many rows."""
        return self.step + rows * self.row


def measure(engine: Engine, metadata: Metadata) -> Cost:
    """Time a few calls. On a busy machine all of them take longer: only how the
    three figures compare matters."""
    one = _seconds(engine, metadata, 1, SHORT)
    long = _seconds(engine, metadata, 1, LONG)
    wide = _seconds(engine, metadata, WIDE, LONG)
    each = max(long - one, 1e-7) / (LONG - SHORT)
    row = max(wide - long, 1e-7) / (LONG * (WIDE - 1))
    return Cost(max(one - each, 0) + TICK, max(each - row, 0), row)


def _seconds(engine: Engine, metadata: Metadata, rows: int, steps: int) -> float:
    """The shortest of a few calls: what hinders it is not its own."""
    frames = np.zeros((rows, steps, metadata.input.features), np.float32)
    lengths = np.full(rows, steps, np.int32)
    state = np.zeros((rows, metadata.state_size), np.float32)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        engine.step(frames, lengths, state)
        times.append(time.perf_counter() - begun)
    return min(times)
