"""How long what waits will take: told well enough to refuse what would come too late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backlog import MOST, Backlog


def made(workers=2):
    backlog = Backlog()
    backlog.workers = workers
    return backlog


def test_sum():
    """It is that of all models, on all workers."""
    backlog = made()
    for model, rate in enumerate((100.0, 1000.0)):
        backlog.queue(model).computed(int(rate), 1.0)
        backlog.queue(model).steps = 500
    assert backlog.seconds == pytest.approx((5 + 0.5) / 2)


def test_unknown():
    """What no worker has computed yet, nobody knows."""
    backlog = made()
    backlog.queue(1).steps = 500
    assert backlog.seconds == 0


def test_best_of_late():
    """Small calls, which are slower, don't make it forget what the workers can do;
    long since it does."""
    queue = made().queue(1)
    queue.computed(1000, 1.0)
    for _ in range(20):
        queue.computed(10, 1.0)
    assert queue.rate > 800
    for _ in range(2000):
        queue.computed(10, 1.0)
    assert queue.rate == pytest.approx(10)


@pytest.mark.parametrize("really", [0.3, 1, 4])
def test_learns(really):
    """Where all takes so many times longer, that is soon what it tells."""
    backlog = made()
    queue = backlog.queue(1)
    queue.computed(1000, 1.0)
    queue.steps = 2000
    for _ in range(200):
        backlog.answered(backlog.seconds, really * 1.0)
    assert backlog.seconds == pytest.approx(really, rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))))
def test_bounds(told):
    """Whatever it is told, it is never wrong by more than what is thought possible."""
    backlog = made(1)
    queue = backlog.queue(1)
    queue.computed(1000, 1.0)
    queue.steps = 1000
    for forecast, seconds in told:
        backlog.answered(forecast, seconds)
    assert 1 / MOST <= backlog.seconds <= MOST
