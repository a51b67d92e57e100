"""Places for work, given to callers in fair turns."""

import asyncio

import pytest

from service.callers.fair_turns import FairTurns

pytestmark = pytest.mark.anyio
MUCH, LITTLE = 8_000_000, 100_000


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places():
    """As many are at work as there are places, and each place is with one."""
    turns = FairTurns("ab")
    assert {await turns.take(("", n), 1) for n in range(2)} == {"a", "b"}
    waiting = asyncio.create_task(turns.take(("", 3), 1))
    await settled()
    assert not waiting.done()
    turns.give_back("b")
    assert await waiting == "b"


async def test_fair():
    """Who has much waiting doesn't keep another waiting for all of it."""
    turns, done = FairTurns([0]), []
    place = await turns.take(("", 9), 1)

    async def work(caller, cost):
        place = await turns.take(caller, cost)
        done.append(caller)
        turns.give_back(place)

    tasks = [asyncio.create_task(work(("", 1), MUCH)) for _ in range(10)]
    await settled()
    tasks.append(asyncio.create_task(work(("", 2), LITTLE)))
    await settled()
    turns.give_back(place)
    await asyncio.gather(*tasks)
    assert done.index(("", 2)) <= 1
    assert len(done) == 11


async def test_cancelled():
    """Who stops waiting takes no place, also in the moment in which it gets one."""
    turns = FairTurns([0])
    place = await turns.take(("", 1), 1)
    first, second = (asyncio.create_task(turns.take(("", n), 1)) for n in (2, 3))
    await settled()
    first.cancel()
    await settled()
    turns.give_back(place)
    second.cancel()  # it has the place, and has not heard of it
    await settled()
    assert await turns.take(("", 4), 1) == 0


async def test_another_owner():
    """Of several owners none has all places."""
    turns = FairTurns("ab")
    first = await turns.take(("a", 1), MUCH)
    more = asyncio.create_task(turns.take(("a", 2), MUCH))
    await settled()
    assert not more.done()
    other = await turns.take(("b", 3), MUCH)
    turns.give_back(other)
    await settled()
    assert not more.done()
    turns.give_back(first)
    assert await more == first


async def test_charged_by_time():
    """Who took longer than others for as many bytes waits for longer."""
    turns, done = FairTurns([0]), []
    place = await turns.take(("slow", 1), LITTLE)

    async def work(caller):
        place = await turns.take(caller, LITTLE)
        done.append(caller[0])
        turns.give_back(place)

    callers = [("slow", 1), ("quick", 2)] * 3
    tasks = [asyncio.create_task(work(caller)) for caller in callers]
    await settled()
    await asyncio.sleep(0.1)
    turns.give_back(place)
    await asyncio.gather(*tasks)
    assert done == ["quick"] * 3 + ["slow"] * 3
