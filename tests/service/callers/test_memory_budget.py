"""The budget of buffered bytes, and how owners of API keys share it and other limits."""

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
    """A connection that can be evicted if it waits for its client."""

    def __init__(self, budget, owner="", *, waits=True):
        self.waits, self.evicted = waits, False
        self.account = budget.account(self.evict)
        self.account.set_owner(owner)

    def evict(self):
        self.evicted = self.waits
        return self.waits

    def add(self, size, seconds=0.0):
        """Buffer so many bytes, since so many seconds ago."""
        assert self.account.add(size)
        self.account.since -= seconds
        return self


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def budget(metrics):
    return MemoryBudget(LIMIT, metrics)


async def test_reservations(budget, metrics):
    """Reserved bytes count, also in the metrics, until they are released or the
    connection is closed."""
    reservation = Reservation(budget.account())
    reservation.resize(300)
    reservation.grow_to(200)
    assert budget.used == 300
    assert value(metrics.text().decode(), "unrolled_buffered_bytes") == 300
    reservation.release()
    assert budget.used == 0
    account = budget.account()
    reservation = Reservation(account)
    reservation.resize(300)
    account.close()
    reservation.resize(500)
    reservation.release()
    assert budget.used == 0
    assert budget._accounts == {}


async def test_eviction(budget, metrics):
    """Beyond the limit, the connection is evicted that buffered the most for the
    longest time, and no others."""
    small = Client(budget).add(100, seconds=20)
    large = Client(budget).add(800, seconds=10)
    new = Client(budget).add(200)
    assert [c.evicted for c in (small, large, new)] == [False, True, False]
    assert budget.used == 300
    assert value(metrics.text().decode(), "unrolled_evicted_connections_total") == 1


async def test_refusal(budget):
    """If no connection waits for its client, more bytes are refused, and the
    reservation keeps its size."""
    Client(budget, waits=False).add(900, seconds=10)
    reservation = Reservation(Client(budget, waits=False).account)
    reservation.resize(50)
    with pytest.raises(BufferFull) as caught:
        reservation.resize(200)
    assert caught.value.headers["Retry-After"]
    assert budget.used == 950


async def test_evicts_itself(budget):
    """If the connection that needs room is itself the first to be evicted, no other
    is."""
    other = Client(budget).add(100, seconds=1)
    own = Client(budget).add(800, seconds=10)
    assert not own.account.add(500)
    assert (own.evicted, other.evicted) == (True, False)
    assert budget.used == 100


class TestOwners:
    async def test_half(self, budget):
        """An owner may use half of the bytes that others leave free. Beyond it, its own
        connections are evicted, and another owner finds room."""
        other = Client(budget, "b").add(100, seconds=60)
        first = Client(budget, "a").add(300, seconds=10)
        second = Client(budget, "a").add(200)
        assert [c.evicted for c in (other, first, second)] == [False, True, False]

    async def test_room(self, budget):
        greedy, size = Client(budget, "a", waits=False), 0
        while greedy.account.add(10):
            size += 10
        assert size == LIMIT / 2
        assert Client(budget, "b").account.add(LIMIT // 4)

    async def test_set_owner(self, budget):
        """Bytes that were buffered before the key was known count for its owner."""
        account = budget.account()
        assert account.add(400)
        account.set_owner("a")
        assert budget.free_for("a") == LIMIT - 400 - 400
        account.close()
        assert budget._owners == {}


async def test_trim(budget, monkeypatch):
    """After a peak, and not during it, free memory goes back to the system, once."""
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


def test_owner_quota():
    """Without API keys, all places can be taken. An owner of several may take half of
    the places that others leave free, so that another finds one."""
    quota = OwnerQuota(4, "streams are open")
    for _ in range(4):
        quota.acquire("")
    with pytest.raises(TooManyStreams):
        quota.acquire("")
    quota.release("")
    quota.acquire("")
    quota = OwnerQuota(4, "streams are open")
    quota.acquire("a")
    quota.acquire("a")
    with pytest.raises(TooManyStreams, match="at most 4 streams are open at a time, "):
        quota.acquire("a")
    quota.acquire("b")
    with pytest.raises(TooManyStreams):
        quota.acquire("b")
