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


def work(queue, clock, seconds, rate, rows=64):
    """Computes at that rate."""
    step = WINDOW_SECONDS / 4
    for _ in range(round(seconds / step)):
        clock[0] += step
        queue.computed(int(rate * step), step / 2, rows)


def test_unknown(clock):
    """What nothing was ever computed of, nobody knows, and nothing is refused for."""
    queue = Queue()
    queue.add(500)
    assert queue.seconds(2) == 0
    assert not queue.late(0.001)


def test_at_best(clock):
    """Before there was enough to do, it is told what the workers' calls allow, and
    nothing is refused for that."""
    queue = Queue()
    queue.add(1000)
    queue.computed(500, 1.0, 1)
    queue.computed(10, 1.0, 1)
    assert queue.seconds(2) == pytest.approx(1.0, rel=0.01)
    assert not queue.late(0.001)


def test_as_it_was(clock):
    """Then it is what really became of it, however fast the calls are; a machine that
    becomes slower or faster is known by its work."""
    queue = Queue()
    queue.add(1_000_000)
    for rate in (10_000, 1_000, 20_000):
        work(queue, clock, 4, rate)
        assert queue.seconds(2) == pytest.approx(1_000_000 / rate, rel=0.05)
        assert queue.late(900_000 / rate)
        assert not queue.late(1_100_000 / rate)


@pytest.mark.parametrize("pause", [0.01, 0.5, 60])
def test_empty(clock, pause):
    """Time in which there was nothing to do does not count as work: of a few steps
    before and after it, nothing is refused."""
    queue = Queue()
    queue.add(1_000_000)
    work(queue, clock, 4, 10_000)
    queue.add(-1_000_000)
    clock[0] += pause
    queue.add(1_000)
    queue.computed(20, 0.001, 20)
    assert not queue.late(0.001)


def test_few_rows(clock):
    """What one sequence takes says nothing about many."""
    queue = Queue()
    queue.add(1_000_000)
    work(queue, clock, 4, 100, rows=1)
    assert not queue.late(0.001)


def test_stall(clock):
    """Nor does a time in which nothing was computed at all, of which nobody is to be
    refused afterwards."""
    queue = Queue()
    queue.add(1_000_000)
    work(queue, clock, 4, 10_000)
    clock[0] += 30
    queue.computed(10, 0.001, 64)
    assert not queue.late(101)


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
