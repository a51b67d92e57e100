"""How long what waits will take: told well enough to refuse what would come too late."""

import anyio
import pytest

from service import backlog as module
from service.backlog import WINDOW_SECONDS, Queue


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def work(queue, clock, seconds, rate, *, left=True):
    """Computes at that rate; where not so much is left, all that there is."""
    step = WINDOW_SECONDS / 4
    for _ in range(round(seconds / step)):
        clock[0] += step
        steps = int(rate * step)
        if not left:
            queue.steps = 0
        queue.computed(steps, step / 2)


def test_unknown(clock):
    """What nothing was ever computed of, nobody knows."""
    queue = Queue()
    queue.add(500)
    assert queue.seconds(2) == 0


def test_at_best(clock):
    """Before there was enough to do, it is what the workers' calls allow."""
    queue = Queue()
    queue.add(1000)
    queue.computed(500, 1.0)
    queue.computed(10, 1.0)
    assert queue.seconds(2) == pytest.approx(1.0, rel=0.01)


def test_as_it_was(clock):
    """Then it is what really became of it, however fast the calls are; a machine that
    becomes slower or faster is known by its work."""
    queue = Queue()
    queue.add(1_000_000)
    for rate in (10_000, 1_000, 20_000):
        work(queue, clock, 4, rate)
        assert queue.seconds(2) == pytest.approx(1_000_000 / rate, rel=0.05)


def test_little_to_do(clock):
    """Times in which there was little to do say nothing about what can be done: it is
    told by the calls again."""
    queue = Queue()
    queue.add(1_000_000)
    work(queue, clock, 4, 10_000)
    work(queue, clock, 4, 100, left=False)
    queue.steps = 10_000
    assert queue.seconds(1) < 1


def test_stall(clock):
    """Nor does a time in which nothing was computed at all, of which nobody is to be
    refused afterwards."""
    queue = Queue()
    queue.add(1_000_000)
    work(queue, clock, 4, 10_000)
    clock[0] += 30
    queue.computed(10, 0.001)
    queue.steps = 10_000
    assert queue.seconds(1) < 1


def test_promised():
    """What was let in counts at once, by its bytes, until it has been read."""

    async def promised():
        queue = Queue()
        for _ in range(200):
            queue.read(1000, 10)
        queue.add(5)
        queue.promise(2000)
        queue.promise(1000)
        assert queue.waiting == pytest.approx(35, rel=0.01)
        await anyio.sleep(0)
        assert queue.waiting == 5

    anyio.run(promised)
