"""The measured cost of engine calls, and the number of steps that follows from it."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker import cost
from service.worker.cost import (
    CALL_SECONDS,
    LONE_LIMITS,
    MAX_CALL_SECONDS,
    MIN_CALLS,
    ROWS_TO_DOUBLE,
    Cost,
    choose_steps,
)
from tests.support.bundles import make_metadata

REMAINING = st.lists(st.integers(1, 1500), min_size=1, max_size=24)
SECONDS = st.floats(-7, -2).map(lambda power: 10**power)
COSTS = st.builds(Cost, call=SECONDS, step=SECONDS, row=SECONDS)
SEEDS = st.integers(0, 2**32 - 1)


class TimedEngine:
    """An engine whose calls take known seconds of a simulated clock."""

    name = "timed"

    def __init__(self, true_cost, delay=lambda: 0.0):
        self.true_cost, self.delay = true_cost, delay
        self.now = 1000.0
        self.calls = []

    def step(self, frames, lengths, state):
        rows, steps, features = frames.shape
        assert lengths.tolist() == [steps] * rows
        assert features == 3
        assert state.shape in ((rows, 2), (rows, 12))
        assert (frames.dtype, lengths.dtype) == (np.float32, np.int32)
        self.calls.append((rows, steps))
        seconds_per_step = self.true_cost.step + rows * self.true_cost.row
        self.now += self.true_cost.call + steps * seconds_per_step + self.delay()
        return np.full((rows, 2), 0.5, np.float32), state


def measure(engine, **changes):
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(perf_counter=lambda: engine.now)
        patch.setattr(cost, "time", clock)
        return cost.measure(engine, make_metadata(features=3, **changes))


class TestMeasure:
    @given(COSTS)
    def test_known_cost(self, true_cost):
        """The seconds of a call, a step and a row are measured; the call also includes
        our own overhead."""
        measured = measure(TimedEngine(true_cost))
        # `abs` is the clock's resolution.
        approx = {"rel": 1e-3, "abs": 1e-9}
        call = true_cost.call + cost.OVERHEAD_SECONDS
        assert measured.call == pytest.approx(call, **approx)
        assert measured.step == pytest.approx(true_cost.step, **approx)
        assert measured.row == pytest.approx(true_cost.row, **approx)

    def test_stack(self):
        """With stacks of frames, calls of whole stacks are timed."""
        engine = TimedEngine(Cost(1e-4, 1e-5, 2e-6))
        measured = measure(engine, stack=4, state_size=12)
        assert {steps for _, steps in engine.calls} == {4, 68}
        assert measured.step == pytest.approx(1e-5, rel=1e-3)

    @given(SEEDS)
    def test_delays(self, seed):
        """Delays of all but one of the calls of a kind have no effect."""
        random = np.random.default_rng(seed)
        true_cost = Cost(1e-4, 1e-5, 2e-6)
        engine = TimedEngine(true_cost)
        delayed = np.zeros(cost.RUNS, bool)

        def delay():
            place = (len(engine.calls) - 1) % cost.RUNS
            if not place:
                delayed[:] = True
                delayed[random.integers(cost.RUNS)] = False
            return float(delayed[place] * random.exponential(1))

        engine.delay = delay
        measured = measure(engine)
        call = true_cost.call + cost.OVERHEAD_SECONDS
        assert measured.call == pytest.approx(call, rel=1e-3)
        assert measured.step == pytest.approx(true_cost.step, rel=1e-3)
        assert measured.row == pytest.approx(true_cost.row, rel=1e-3)

    @given(SEEDS)
    def test_random_times(self, seed):
        """Whatever the times, no figure is negative, and `choose_steps` works."""
        random = np.random.default_rng(seed)
        free = Cost(0, 0, 0)
        delays = TimedEngine(free, lambda: float(random.choice([0, 1e-9, 1e-4, 1])))
        for engine in (delays, TimedEngine(free)):
            measured = measure(engine)
            assert measured.call >= cost.OVERHEAD_SECONDS
            assert measured.step >= 0
            assert measured.row > 0
            assert 1 <= choose_steps([5, 1000, 70], measured) <= 1000
        assert measured.call == cost.OVERHEAD_SECONDS
        assert measured.step < 1e-8
        assert measured.row < 1e-8

    def test_seconds_per_step(self):
        assert Cost(7, 3, 0.5).seconds_per_step(4) == 5


def price(steps, remaining, call_cost):
    """Seconds for each useful step of a call with so many steps."""
    useful = sum(min(steps, left) for left in remaining)
    seconds_per_step = call_cost.step + len(remaining) * call_cost.row
    return (call_cost.call + steps * seconds_per_step) / useful


def max_steps(remaining, call_cost):
    """The most steps within the time limit of a call. If the longest lane would end
    then, the limit is 1.5 times as long, or LONE_LIMITS times for a lane alone."""
    rows = len(remaining)
    seconds = min(CALL_SECONDS * (1 + rows / ROWS_TO_DOUBLE), MAX_CALL_SECONDS)
    budget = max(seconds, MIN_CALLS * call_cost.call)
    steps = max(1, int(budget / (call_cost.step + rows * call_cost.row)))
    extended = LONE_LIMITS * steps if rows == 1 else steps + steps // 2
    return max(remaining) if max(remaining) <= extended else steps


class TestChooseSteps:
    @given(REMAINING, COSTS, st.randoms())
    def test_least_price(self, remaining, call_cost, random):
        """No other number within the limit has a lower price, and the order of the
        lanes does not matter."""
        steps = choose_steps(remaining, call_cost)
        limit = max_steps(remaining, call_cost)
        assert 1 <= steps <= min(limit, max(remaining))
        best = min(price(n, remaining, call_cost) for n in range(1, limit + 1))
        assert price(steps, remaining, call_cost) == pytest.approx(best, rel=1e-9)
        random.shuffle(remaining)
        assert choose_steps(remaining, call_cost) == steps

    @given(st.integers(1, 100_000), st.integers(1, 24), COSTS)
    def test_equal_lengths(self, length, rows, call_cost):
        """Equal lanes take the whole limit, or all that they have left."""
        for remaining in ([length], [length] * rows):
            limit = max_steps(remaining, call_cost)
            assert choose_steps(remaining, call_cost) == min(limit, length)

    @given(REMAINING)
    def test_extreme_costs(self, remaining):
        """If calls cost nothing, no lane is padded. If only calls cost, all lanes run
        to their ends."""
        free_calls = Cost(call=0, step=1e-6, row=1e-6)
        assert choose_steps(remaining, free_calls) <= min(remaining)
        only_calls = Cost(call=1, step=1e-9, row=1e-9)
        assert choose_steps(remaining, only_calls) == max(remaining)

    def test_extended_limit(self):
        """Lanes that end within 1.5 times the limit run to their ends."""
        call_cost = Cost(call=0, step=0, row=1e-4)
        limit = choose_steps([10**6] * 2, call_cost)
        extended = limit + limit // 2
        assert choose_steps([extended] * 2, call_cost) == extended
        assert choose_steps([extended + 1] * 2, call_cost) == limit

    def test_no_lanes(self):
        assert choose_steps([], Cost()) == 0
