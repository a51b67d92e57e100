"""The measured cost of engine calls, and the number of steps for each call."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.bundle.metadata import Metadata
from service.worker.engine import Engine

OVERHEAD_SECONDS = 60e-6  # of our own Python around each engine call
# Steps of the layers (stacks of frames), and rows, of the calls that are timed.
SHORT, LONG, WIDE = 1, 17, 8
RUNS = 5

# A new job waits for half a call on average, so calls are short while few lanes are in
# use, and longer where a job would share the engine with many others anyway. A call
# lasts at least as long as MIN_CALLS empty calls: an empty call's time is overhead.
CALL_SECONDS, MAX_CALL_SECONDS = 0.001, 0.0025
ROWS_TO_DOUBLE = 8  # with so many rows, a call may last twice CALL_SECONDS
MIN_CALLS = 8
LONE_LIMITS = 4  # a sequence alone may exceed the limit so many times to be done


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of an engine call: call + steps * (step + rows * row)."""

    call: float = 100e-6
    step: float = 10e-6
    row: float = 10e-6

    def seconds_per_step(self, rows: int) -> float:
        return self.step + rows * self.row


def measure(engine: Engine, metadata: Metadata) -> Cost:
    """Time a few calls. On a busy machine all of them take longer, but only the ratios
    of the three figures matter."""
    short_steps, long_steps = SHORT * metadata.stack, LONG * metadata.stack
    short = _seconds(engine, metadata, 1, short_steps)
    long = _seconds(engine, metadata, 1, long_steps)
    wide = _seconds(engine, metadata, WIDE, long_steps)
    step_and_row = max(long - short, 1e-7) / (long_steps - short_steps)
    row = max(wide - long, 1e-7) / (long_steps * (WIDE - 1))
    call = max(short - short_steps * step_and_row, 0) + OVERHEAD_SECONDS
    return Cost(call, max(step_and_row - row, 0), row)


def _seconds(engine: Engine, metadata: Metadata, rows: int, steps: int) -> float:
    """Return the time of the fastest of a few calls: delays have other causes."""
    frames = np.zeros((rows, steps, metadata.input.features), np.float32)
    lengths = np.full(rows, steps, np.int32)
    state = np.zeros((rows, metadata.state_size), np.float32)
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        engine.step(frames, lengths, state)
        times.append(time.perf_counter() - started)
    return min(times)


def choose_steps(remaining: Sequence[int], cost: Cost) -> int:
    """Return how many steps the next call takes of lanes with so many steps left: the
    number with the least time for each useful step, within the time limit of a call.

    Few steps pay for the call more often; many steps compute padding for the lanes
    that end within the call. The best number is always where some lane ends.
    """
    rows = len(remaining)
    if not rows:
        return 0
    step = cost.seconds_per_step(rows)
    seconds = min(CALL_SECONDS * (1 + rows / ROWS_TO_DOUBLE), MAX_CALL_SECONDS)
    limit = max(1, int(max(seconds, MIN_CALLS * cost.call) / step))
    order = sorted(remaining)
    if order[-1] <= (LONE_LIMITS * limit if rows == 1 else limit + limit // 2):
        limit = order[-1]  # no extra call for a few last steps
    best, least, ended = limit, float("inf"), 0
    for shorter, steps in enumerate(order):
        steps = min(steps, limit)
        price = (cost.call + steps * step) / (ended + (rows - shorter) * steps)
        if price < least:
            best, least = steps, price
        if steps == limit:
            break
        ended += steps
    return best
