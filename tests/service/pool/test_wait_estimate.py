"""How long what waits will take: told well enough to refuse what would come too late."""

import anyio
import pytest

from service.pool.wait_estimate import FAIR_STEPS, WINDOW_SECONDS, WaitEstimate


def work(queue, seconds, rate, rows=64):
    """A worker computes at that rate, half of its time in the calls."""
    step = WINDOW_SECONDS / 4
    for _ in range(round(seconds / step)):
        queue.observe_batch(int(rate * step), rows, step / 2, step)


def test_unknown():
    """What nothing was ever computed of, nobody knows, and nothing is refused for."""
    queue = WaitEstimate()
    queue.add(500)
    assert queue.seconds(queue.waiting, 2) == 0
    assert not queue.exceeds(0, 1, 0.001, 2)


def test_at_best():
    """Before there was enough to do, it is told what the workers' calls allow, and
    nothing is refused for that."""
    queue = WaitEstimate()
    queue.add(1000)
    queue.observe_batch(500, 1, 1.0, 1.0)
    queue.observe_batch(10, 1, 1.0, 1.0)
    assert queue.seconds(queue.waiting, 2) == pytest.approx(1.0, rel=0.01)
    assert not queue.exceeds(0, 1, 0.001, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_as_it_was(workers):
    """Then it is what really became of it, however fast the calls are; a machine that
    becomes slower or faster is known by its work."""
    queue = WaitEstimate()
    queue.add(1_000_000)
    for rate in (10_000, 1_000, 20_000):
        work(queue, 4, rate)
        seconds = 1_000_000 / (rate * workers)
        assert queue.seconds(queue.waiting, workers) == pytest.approx(seconds, rel=0.05)
        assert queue.exceeds(0, 1, 0.9 * seconds, workers)
        assert not queue.exceeds(0, 1, 1.1 * seconds, workers)


def test_empty():
    """What was computed before there was nothing to do says nothing about what comes
    after it: of a few steps, nothing is refused."""
    queue = WaitEstimate()
    queue.add(1_000_000)
    work(queue, 4, 10_000)
    queue.add(-1_000_000)
    queue.add(1_000)
    queue.observe_batch(20, 20, 0.001, 0.001)
    assert not queue.exceeds(0, 1, 0.001, 2)


def test_few_rows():
    """What one sequence takes says nothing about many."""
    queue = WaitEstimate()
    queue.add(1_000_000)
    work(queue, 4, 100, rows=1)
    assert not queue.exceeds(0, 1, 0.001, 2)


def test_stall():
    """Nor does a time in which the machine stood still, of which nobody is to be
    refused afterwards."""
    queue = WaitEstimate()
    queue.add(1_000_000)
    work(queue, 4, 10_000)
    queue.observe_batch(10, 64, 30.0, 30.0)
    assert not queue.exceeds(0, 1, 101, 1)


def test_fair_turns():
    """A caller waits for its own steps, and of each other's for no more than for its
    own or a sequence's: workers take callers in turns."""
    queue = WaitEstimate()
    for caller in (1, 2):
        queue.add(50_000)
        queue.charge(caller, 50_000)
    assert queue.steps_before(3, 10) == 10 + 2 * FAIR_STEPS
    assert queue.steps_before(1, 10) == 100_000  # it has most of them itself
    assert queue.steps_before(0, 10) == 100_000  # who knows
    queue.charge(1, -50_000)
    assert queue.steps_before(3, 10) == 10 + FAIR_STEPS


def test_promised():
    """What was let in counts at once, by its bytes, until it has been read."""

    async def promised():
        queue = WaitEstimate()
        for _ in range(200):
            queue.observe_body(1000, 10)
        queue.add(5)
        queue.reserve(2000)
        queue.reserve(1000)
        assert queue.waiting == pytest.approx(35, rel=0.01)
        await anyio.sleep(0)
        assert queue.waiting == 5

    anyio.run(promised)
