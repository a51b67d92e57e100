"""Requests begun in a turn of the event loop: few where owners of several keys ask."""

import asyncio

import pytest

from service.callers.memory_budget import MemoryBudget
from service.callers.request_pacing import MIN_REQUESTS, PacedConnection, RequestPacer
from service.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


class Socket:
    """A transport, as far as it is paused and closed."""

    def __init__(self):
        self.reads, self.closed = True, False

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True


class Readers:
    """Connections of owners, and what was handled of them in order."""

    def __init__(self, limit=10**6):
        self.budget, self.turns = MemoryBudget(limit, Metrics()), RequestPacer()
        self.handled = []

    def read(self, owner, data=b"x", times=1):
        account = self.budget.account()
        account.owner = owner
        turn = PacedConnection(
            self.turns, account, lambda all_: self.handled.append((owner, all_))
        )
        made = Socket()
        for _ in range(times):
            turn.feed(data, made)
        return turn, made


async def test_one_owner():
    """As much as came, where nobody else asks: also without keys."""
    some = Readers()
    for _ in range(100):
        some.read("")
    assert len(some.handled) == 100


async def test_several_owners():
    """Few in a turn, each owner's by turns; all in the end, and nothing is held then."""
    some = Readers()
    for _ in range(100):
        some.read("many")
    assert len(some.handled) == 100  # nobody else has asked yet
    await asyncio.sleep(0)
    some.read("few")
    for _ in range(100):
        some.read("many")
    some.read("few")
    assert len(some.handled) == 100 + MIN_REQUESTS
    assert some.budget.used == 98
    await asyncio.sleep(0)
    assert ("few", b"x") in some.handled[100 + MIN_REQUESTS : 100 + 2 * MIN_REQUESTS]
    assert len(some.handled) <= 100 + 2 * MIN_REQUESTS + 1
    while len(some.handled) < 202:
        await asyncio.sleep(0)
    assert some.budget.used == 0


async def test_more_comes():
    """What comes while a connection waits is handled with it; it is read no further."""
    some = Readers()
    some.read("a")
    for _ in range(MIN_REQUESTS):
        some.read("b")
    _, made = some.read("b", b"abc", times=2)
    assert not made.reads
    await asyncio.sleep(0)
    assert some.handled[-1] == ("b", b"abcabc")
    assert made.reads


async def test_gone():
    """A connection that has gone, or that there is no room for, is not handled."""
    some = Readers(limit=10)
    some.read("a")
    for _ in range(MIN_REQUESTS - 1):
        some.read("b")
    gone, _ = some.read("b", b"abc")
    gone.close()
    gone.account.close()
    _, large = some.read("b", b"more than ten")
    assert large.closed
    count = len(some.handled)
    await asyncio.sleep(0)
    assert len(some.handled) == count
