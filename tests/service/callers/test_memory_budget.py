"""The budget of bytes that are held for clients, and how owners share it."""

import asyncio
import time

import pytest

from service import os_resources
from service.callers import memory_budget
from service.callers.memory_budget import MemoryBudget, Reservation
from service.callers.owner_quota import OwnerQuota
from service.errors import BufferFull, TooManyStreams
from service.telemetry.metrics import Metrics
from tests.support.servers import value

LIMIT = 1000
pytestmark = pytest.mark.anyio


class Client:
    """A connection that can be evicted while it waits for its client."""

    def __init__(self, budget, owner="", *, waits=True):
        self.waits, self.evicted = waits, False
        self.account = budget.account(self.evict)
        self.account.set_owner(owner)

    def evict(self):
        self.evicted = self.waits
        return self.waits

    def holds(self, size, seconds=0.0):
        """Holds so many bytes, for so many seconds already."""
        assert self.account.add(size)
        self.account.since -= seconds
        return self


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def budget(metrics):
    return MemoryBudget(LIMIT, metrics)


async def test_counts(budget, metrics):
    """What is held is counted until it is held no more, and told to Prometheus."""
    hold = Reservation(budget.account())
    hold.resize(300)
    hold.grow_to(200)
    assert budget.used == 300
    assert value(metrics.text().decode(), "unrolled_buffered_bytes") == 300
    hold.release()
    assert budget.used == 0


async def test_gone(budget):
    """Nothing of a connection that has gone is counted, then or later."""
    account = budget.account()
    hold = Reservation(account)
    hold.resize(300)
    account.close()
    hold.resize(500)
    hold.release()
    assert budget.used == 0
    assert budget._accounts == {}


async def test_evicts_largest_and_oldest(budget, metrics):
    """Over the limit the connection goes that held the most for the longest time, and
    no others."""
    small = Client(budget).holds(100, seconds=20)
    large = Client(budget).holds(800, seconds=10)
    new = Client(budget).holds(200)
    assert [c.evicted for c in (small, large, new)] == [False, True, False]
    assert budget.used == 300
    assert value(metrics.text().decode(), "unrolled_evicted_connections_total") == 1


async def test_refuses(budget):
    """Where nobody waits for a client, what asks for more is refused, and holds what it
    did before."""
    Client(budget, waits=False).holds(900, seconds=10)
    hold = Reservation(Client(budget, waits=False).account)
    hold.resize(50)
    with pytest.raises(BufferFull) as caught:
        hold.resize(200)
    assert caught.value.headers["Retry-After"]
    assert budget.used == 950


async def test_evicts_itself(budget):
    """One that is itself the largest that waits is refused, not the others."""
    other = Client(budget).holds(100, seconds=1)
    own = Client(budget).holds(800, seconds=10)
    assert not own.account.add(500)
    assert own.evicted
    assert not other.evicted
    assert budget.used == 100


class TestOwners:
    async def test_half(self, budget):
        """One owner of several gets half, by its own evictions, and nobody else's."""
        other = Client(budget, "b").holds(100, seconds=60)
        first = Client(budget, "a").holds(300, seconds=10)
        second = Client(budget, "a").holds(200)
        assert [c.evicted for c in (other, first, second)] == [False, True, False]

    async def test_room(self, budget):
        """However many bytes one owner asks for, another finds room."""
        taken = 0
        greedy = Client(budget, "a", waits=False)
        while greedy.account.add(10):
            taken += 10
        assert taken == LIMIT / 2
        assert Client(budget, "b").account.add(LIMIT // 4)

    async def test_moves(self, budget):
        """What a connection held before its key was known counts for its owner then."""
        account = budget.account()
        assert account.add(400)
        account.set_owner("a")
        assert budget.free_for("a") == LIMIT - 400 - 400
        account.close()
        assert budget._owners == {}


async def test_trims(budget, monkeypatch):
    """After a burst the allocator gives back what was freed; once, and not during it."""
    calls = []
    monkeypatch.setattr(
        os_resources, "release_free_memory", lambda: calls.append(time.monotonic())
    )
    monkeypatch.setattr(memory_budget, "TRIM_BYTES", 100)
    monkeypatch.setattr(memory_budget, "TRIM_SECONDS", 0.05)
    account = budget.account()
    account.add(500)
    await asyncio.sleep(0.2)
    assert calls == []
    account.remove(500)
    await asyncio.sleep(0.3)
    assert len(calls) == 1


class TestOwnerQuota:
    def test_one_owner(self):
        """Without API keys all places can be taken, and no more."""
        shares = OwnerQuota(4, "streams are open")
        for _ in range(4):
            shares.acquire("")
        with pytest.raises(TooManyStreams):
            shares.acquire("")
        shares.release("")
        shares.acquire("")

    def test_several(self):
        """One owner of several gets half of the places, another finds one."""
        shares = OwnerQuota(4, "streams are open")
        shares.acquire("a")
        shares.acquire("a")
        with pytest.raises(TooManyStreams):
            shares.acquire("a")
        shares.acquire("b")
        with pytest.raises(TooManyStreams):
            shares.acquire("b")
