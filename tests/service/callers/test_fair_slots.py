"""Slots for work, given to callers in fair order."""

import asyncio

import pytest

from service.callers.fair_slots import FairSlots

pytestmark = pytest.mark.anyio
LARGE, SMALL = 8_000_000, 100_000  # costs


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_slots():
    """Each slot is held by one caller; another waits until one is released."""
    slots = FairSlots("ab")
    assert {await slots.acquire(("", n), 1) for n in range(2)} == {"a", "b"}
    waiting = asyncio.create_task(slots.acquire(("", 3), 1))
    await settle()
    assert not waiting.done()
    slots.release("b")
    assert await waiting == "b"


async def test_fair_order():
    """A caller does not wait for all work of one that has much waiting. One that took
    longer than others for as many bytes waits longer."""
    for callers, cost, seconds in (
        ([("", 1)] * 10 + [("", 2)], LARGE, 0),
        ([("slow", 1), ("fast", 2)] * 3, SMALL, 0.1),
    ):
        slots, done = FairSlots([0]), []
        slot = await slots.acquire(("slow", 1), SMALL)

        async def work(caller, slots=slots, done=done, cost=cost):
            slot = await slots.acquire(caller, SMALL if caller == ("", 2) else cost)
            done.append(caller)
            slots.release(slot)

        tasks = [asyncio.create_task(work(caller)) for caller in callers]
        await settle()
        await asyncio.sleep(seconds)
        slots.release(slot)
        await asyncio.gather(*tasks)
        if seconds:
            assert done == [("fast", 2)] * 3 + [("slow", 1)] * 3
        else:
            assert done.index(("", 2)) <= 1
            assert len(done) == 11


async def test_cancelled():
    """A caller that stops waiting takes no slot, even if it just got one."""
    slots = FairSlots([0])
    slot = await slots.acquire(("", 1), 1)
    first, second = (asyncio.create_task(slots.acquire(("", n), 1)) for n in (2, 3))
    await settle()
    first.cancel()
    await settle()
    slots.release(slot)
    second.cancel()  # it has the slot, but has not resumed
    await settle()
    assert await slots.acquire(("", 4), 1) == 0


async def test_owners():
    """If there are several owners, no owner holds all slots."""
    slots = FairSlots("ab")
    first = await slots.acquire(("a", 1), LARGE)
    second = asyncio.create_task(slots.acquire(("a", 2), LARGE))
    await settle()
    assert not second.done()
    other = await slots.acquire(("b", 3), LARGE)
    slots.release(other)
    await settle()
    assert not second.done()
    slots.release(first)
    assert await second == first
