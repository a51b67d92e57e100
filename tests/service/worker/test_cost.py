"""What an engine call costs, found out from an engine whose cost is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker import cost
from service.worker.cost import Cost, choose_steps
from tests.support.bundles import make_metadata

SECONDS = st.floats(-6, -2).map(lambda power: 10**power)


class Priced:
    """An engine whose calls take known seconds of a clock that only they move."""

    name = "priced"

    def __init__(self, price, hindrance=lambda: 0.0):
        self.price, self.hindrance = price, hindrance
        self.now = 1000.0
        self.calls = []

    def step(self, frames, lengths, state):
        rows, steps, features = frames.shape
        assert lengths.tolist() == [steps] * rows
        assert (features, state.shape) == (3, (rows, 2))
        assert (frames.dtype, lengths.dtype) == (np.float32, np.int32)
        self.calls.append((rows, steps))
        self.now += self.price.call + steps * self.price.seconds_per_step(rows)
        self.now += self.hindrance()
        return np.full((rows, 2), 0.5, np.float32), state


def measure(engine):
    """What is found out, by that clock."""
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(perf_counter=lambda: engine.now)
        patch.setattr(cost, "time", clock)
        return cost.measure(engine, make_metadata(features=3))


@given(SECONDS, SECONDS, SECONDS)
def test_known(call, step, row):
    """The seconds of a call, of a step and of a row are each found, with our own
    seconds around a call on top."""
    found = measure(Priced(Cost(call, step, row)))
    # To what the clock resolves, with what a difference of two loses.
    close = {"rel": 1e-3, "abs": 1e-10}
    assert found.call == pytest.approx(call + cost.OVERHEAD_SECONDS, **close)
    assert found.step == pytest.approx(step, **close)
    assert found.row == pytest.approx(row, **close)


@given(st.integers(0, 2**32 - 1))
def test_hindered(seed):
    """Calls that something else hinders, most of them, change nothing."""
    random = np.random.default_rng(seed)
    price = Cost(1e-4, 1e-5, 2e-6)
    engine = Priced(price)
    hindered = np.zeros(cost.RUNS, bool)

    def hindrance():
        place = (len(engine.calls) - 1) % cost.RUNS
        if not place:  # all but one of those that are alike
            hindered[:] = True
            hindered[random.integers(cost.RUNS)] = False
        return float(hindered[place] * random.exponential(1))

    engine.hindrance = hindrance
    found = measure(engine)
    assert found.call == pytest.approx(price.call + cost.OVERHEAD_SECONDS, rel=1e-3)
    assert found.step == pytest.approx(price.step, rel=1e-3)
    assert found.row == pytest.approx(price.row, rel=1e-3)


@given(st.integers(0, 2**32 - 1))
def test_nonsense(seed):
    """However odd the times are, no figure is negative, and a step costs something:
    the length of a chunk can be told from them."""
    random = np.random.default_rng(seed)
    free = Cost(0, 0, 0)
    engine = Priced(free, lambda: float(random.choice([0, 1e-9, 1e-4, 1])))
    found = measure(engine)
    assert found.call >= cost.OVERHEAD_SECONDS
    assert found.step >= 0
    assert found.row > 0
    assert 1 <= choose_steps([5, 1000, 70], found) <= 1000


def test_free():
    """So it is of an engine that takes no time at all."""
    found = measure(Priced(Cost(0, 0, 0)))
    assert found.call == cost.OVERHEAD_SECONDS
    assert 0 <= found.step < 1e-8
    assert 0 < found.row < 1e-8


@given(st.integers(1, 64), SECONDS, SECONDS, SECONDS)
def test_of_step(rows, call, step, row):
    """Of a call with so many rows, each step costs its own seconds and the rows'."""
    assert Cost(call, step, row).seconds_per_step(rows) == pytest.approx(
        step + rows * row
    )
