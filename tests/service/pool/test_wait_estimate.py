"""The estimated wait is right enough to refuse requests that would be too late."""

import anyio
import pytest

from service.pool.wait_estimate import FAIR_STEPS, WINDOW_SECONDS, WaitEstimate


def loaded(rate=0, seconds=4, rows=64):
    """An estimate with 1,000,000 waiting steps, after a time under load."""
    estimate = WaitEstimate()
    estimate.add(1_000_000)
    if rate:
        work(estimate, rate, seconds, rows)
    return estimate


def work(estimate, rate, seconds=4, rows=64):
    """Report a worker's calls at this rate, which take half of its time."""
    window = WINDOW_SECONDS / 4
    for _ in range(round(seconds / window)):
        estimate.observe_batch(int(rate * window), rows, window / 2, window)


def test_unknown_rate():
    """Before anything was computed, the estimate is 0, and nothing is refused."""
    estimate = WaitEstimate()
    estimate.add(500)
    assert estimate.seconds(estimate.waiting, 2) == 0
    assert not estimate.exceeds(0, 1, 0.001, 2)


def test_light_load():
    """Without a load, the fastest call gives the estimate, and nothing is refused."""
    estimate = WaitEstimate()
    estimate.add(1000)
    estimate.observe_batch(500, 1, 1.0, 1.0)
    estimate.observe_batch(10, 1, 1.0, 1.0)
    assert estimate.seconds(estimate.waiting, 2) == pytest.approx(1.0, rel=0.01)
    assert not estimate.exceeds(0, 1, 0.001, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_load(workers):
    """Under load, the workers' real rate gives the estimate, which follows a machine
    that becomes slower or faster."""
    estimate = loaded()
    for rate in (10_000, 1_000, 20_000):
        work(estimate, rate)
        seconds = 1_000_000 / (rate * workers)
        actual = estimate.seconds(estimate.waiting, workers)
        assert actual == pytest.approx(seconds, rel=0.05)
        assert estimate.exceeds(0, 1, 0.9 * seconds, workers)
        assert not estimate.exceeds(0, 1, 1.1 * seconds, workers)


def test_no_valid_rate():
    """A rate from before an idle time, or from calls of few rows, refuses nothing; a
    time in which the machine was stalled does not change the rate."""
    estimate = loaded(10_000)
    estimate.add(-1_000_000)
    estimate.add(1_000)
    estimate.observe_batch(20, 20, 0.001, 0.001)
    assert not estimate.exceeds(0, 1, 0.001, 2)
    assert not loaded(100, rows=1).exceeds(0, 1, 0.001, 2)
    estimate = loaded(10_000)
    estimate.observe_batch(10, 64, 30.0, 30.0)
    assert not estimate.exceeds(0, 1, 101, 1)


def test_fair_turns():
    """A caller waits for its own steps, and for each other caller's up to its own or a
    sequence's, since callers take turns."""
    estimate = WaitEstimate()
    for caller in (1, 2):
        estimate.add(50_000)
        estimate.charge(caller, 50_000)
    assert estimate.steps_before(3, 10) == 10 + 2 * FAIR_STEPS
    assert estimate.steps_before(1, 10) == 100_000  # it has most of them itself
    assert estimate.steps_before(0, 10) == 100_000  # anonymous
    estimate.charge(1, -50_000)
    assert estimate.steps_before(3, 10) == 10 + FAIR_STEPS


def test_reserve():
    """Bodies that are not parsed yet count by their size, for one iteration of the
    event loop."""

    async def reserve():
        estimate = WaitEstimate()
        for _ in range(200):
            estimate.observe_body(1000, 10)
        estimate.add(5)
        estimate.reserve(2000)
        estimate.reserve(1000)
        assert estimate.waiting == pytest.approx(35, rel=0.01)
        await anyio.sleep(0)
        assert estimate.waiting == 5

    anyio.run(reserve)
