"""Places for work, given to callers in fair slots."""

import asyncio

import pytest

from service.callers.fair_slots import FairSlots

pytestmark = pytest.mark.anyio
MUCH, LITTLE = 8_000_000, 100_000


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places():
    """As many are at work as there are places, and each place is with one."""
    slots = FairSlots("ab")
    assert {await slots.acquire(("", n), 1) for n in range(2)} == {"a", "b"}
    waiting = asyncio.create_task(slots.acquire(("", 3), 1))
    await settled()
    assert not waiting.done()
    slots.release("b")
    assert await waiting == "b"


async def test_fair():
    """Who has much waiting doesn't keep another waiting for all of it."""
    slots, done = FairSlots([0]), []
    place = await slots.acquire(("", 9), 1)

    async def work(caller, cost):
        place = await slots.acquire(caller, cost)
        done.append(caller)
        slots.release(place)

    tasks = [asyncio.create_task(work(("", 1), MUCH)) for _ in range(10)]
    await settled()
    tasks.append(asyncio.create_task(work(("", 2), LITTLE)))
    await settled()
    slots.release(place)
    await asyncio.gather(*tasks)
    assert done.index(("", 2)) <= 1
    assert len(done) == 11


async def test_cancelled():
    """Who stops waiting takes no place, also in the moment in which it gets one."""
    slots = FairSlots([0])
    place = await slots.acquire(("", 1), 1)
    first, second = (asyncio.create_task(slots.acquire(("", n), 1)) for n in (2, 3))
    await settled()
    first.cancel()
    await settled()
    slots.release(place)
    second.cancel()  # it has the place, and has not heard of it
    await settled()
    assert await slots.acquire(("", 4), 1) == 0


async def test_another_owner():
    """Of several owners none has all places."""
    slots = FairSlots("ab")
    first = await slots.acquire(("a", 1), MUCH)
    more = asyncio.create_task(slots.acquire(("a", 2), MUCH))
    await settled()
    assert not more.done()
    other = await slots.acquire(("b", 3), MUCH)
    slots.release(other)
    await settled()
    assert not more.done()
    slots.release(first)
    assert await more == first


async def test_charged_by_time():
    """Who took longer than others for as many bytes waits for longer."""
    slots, done = FairSlots([0]), []
    place = await slots.acquire(("slow", 1), LITTLE)

    async def work(caller):
        place = await slots.acquire(caller, LITTLE)
        done.append(caller[0])
        slots.release(place)

    callers = [("slow", 1), ("quick", 2)] * 3
    tasks = [asyncio.create_task(work(caller)) for caller in callers]
    await settled()
    await asyncio.sleep(0.1)
    slots.release(place)
    await asyncio.gather(*tasks)
    assert done == ["quick"] * 3 + ["slow"] * 3
