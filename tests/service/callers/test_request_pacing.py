"""Only a few requests start in an iteration of the event loop if several owners of API
keys send them."""

import asyncio

import pytest

from service.callers.memory_budget import MemoryBudget
from service.callers.request_pacing import MIN_REQUESTS, PacedConnection, RequestPacer
from service.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


class FakeTransport:
    def __init__(self):
        self.reading, self.closed = True, False

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True


class Connections:
    """Connections of owners, and the data that was passed on, in order."""

    def __init__(self, limit=10**6):
        self.budget, self.pacer = MemoryBudget(limit, Metrics()), RequestPacer()
        self.passed = []

    def feed(self, owner, data=b"x", times=1):
        """Feed data to a new connection of an owner."""
        account = self.budget.account()
        account.owner = owner
        connection = PacedConnection(
            self.pacer, account, lambda data: self.passed.append((owner, data))
        )
        transport = FakeTransport()
        for _ in range(times):
            connection.feed(data, transport)
        return connection, transport


async def test_one_owner():
    """With one owner, or without keys, nothing waits."""
    connections = Connections()
    for _ in range(100):
        connections.feed("")
    assert len(connections.passed) == 100


async def test_several_owners():
    """With several owners, few requests start in an iteration, and owners take turns.
    All start in the end, and then nothing is buffered."""
    connections = Connections()
    for _ in range(100):
        connections.feed("many")
    assert len(connections.passed) == 100  # there is no other owner yet
    await asyncio.sleep(0)
    connections.feed("few")
    for _ in range(100):
        connections.feed("many")
    connections.feed("few")
    assert len(connections.passed) == 100 + MIN_REQUESTS
    assert connections.budget.used == 98
    await asyncio.sleep(0)
    start = 100 + MIN_REQUESTS
    assert ("few", b"x") in connections.passed[start : start + MIN_REQUESTS]
    assert len(connections.passed) <= start + MIN_REQUESTS + 1
    while len(connections.passed) < 202:
        await asyncio.sleep(0)
    assert connections.budget.used == 0


async def test_more_data():
    """Data that comes while a connection waits is passed on with the rest. Meanwhile,
    reading is paused."""
    connections = Connections()
    connections.feed("a")
    for _ in range(MIN_REQUESTS):
        connections.feed("b")
    _, transport = connections.feed("b", b"abc", times=2)
    assert not transport.reading
    await asyncio.sleep(0)
    assert connections.passed[-1] == ("b", b"abcabc")
    assert transport.reading


async def test_closed():
    """Data of a connection that is closed, or for which there is no room, is
    dropped."""
    connections = Connections(limit=10)
    connections.feed("a")
    for _ in range(MIN_REQUESTS - 1):
        connections.feed("b")
    closed, _ = connections.feed("b", b"abc")
    closed.close()
    closed.account.close()
    _, transport = connections.feed("b", b"more than ten")
    assert transport.closed
    count = len(connections.passed)
    await asyncio.sleep(0)
    assert len(connections.passed) == count
