"""A caller's deadline: refused in time, and not computed."""

import asyncio
import time

from tests.robustness.harness import reference
from tests.robustness.harness.burst import Reply, ask, fire
from tests.robustness.harness.busy_queue import (
    LONG,
    NETWORK,
    ONE_LANE,
    PART,
    congested,
    settled,
    useful,
)
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.fault_injection import HANGS
from tests.robustness.harness.service import serving
from tests.robustness.load.isolation import poison

DEADLINE_MS = 50
SLACK_MS = 50
FAST = 100
FILLERS = 2  # requests before them
EVERY = 0.0025  # seconds from one request to the next
HEADER = f"X-Request-Timeout-Ms: {DEADLINE_MS}\r\n".encode()


@row("B5", "deadline of 50 ms, a full queue, a hanging engine", full=200, fast=FAST)
def refused_in_time(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 20)
    requests = [_hurried(asked[n % len(asked)].bytes) for n in range(amount)]
    with serving(
        tally,
        module="tests.robustness.harness.fault_injection",
        request_seconds=60,
        **ONE_LANE,
    ) as service:
        asyncio.run(_queue(tally, service, requests))
        if amount > FAST:  # its worker's end takes seconds
            asyncio.run(_hanging(tally, service, requests))


async def _hanging(tally: Tally, service, requests: list[bytes]) -> None:
    """Nothing is there that an estimate could see: they are let in, and time runs
    out."""
    before = await asyncio.to_thread(useful, service)
    hangs = asyncio.create_task(ask(service.port, poison(HANGS), patience=10))
    await asyncio.sleep(0.2)
    replies = await fire(service.port, requests, every=EVERY)
    _in_time(tally, replies)
    more = await asyncio.to_thread(useful, service) - before
    tally.check(more == 0, f"{more} steps of refused requests were computed")
    tally.figure("504 behind a call without end", sum(r.status == 504 for r in replies))
    hangs.cancel()
    await asyncio.gather(hangs, return_exceptions=True)


async def _queue(tally: Tally, service, requests: list[bytes]) -> None:
    before = useful(service)
    begun = time.monotonic()
    async with congested(service, FILLERS) as fillers:
        replies = await fire(service.port, requests, every=EVERY)
    tally.check(
        [one.status for one in fillers] == [200] * FILLERS, f"the queue: {fillers}"
    )
    tally.check(await settled(service), "steps wait for ever")
    _in_time(tally, replies)
    computed = await asyncio.to_thread(useful, service) - before
    more = computed - FILLERS * PART * LONG
    tally.check(more == 0, f"{more} steps of refused requests were computed")
    tally.figure("seconds of work before them", time.monotonic() - begun)


def _in_time(tally: Tally, replies: list[Reply]) -> None:
    for reply in replies:
        took = f"{reply.status} after {1000 * reply.seconds:.0f} ms"
        fine = reply.status in (503, 504)
        tally.check(fine and 1000 * reply.seconds <= DEADLINE_MS + SLACK_MS, took)
    slowest = 1000 * max(reply.seconds for reply in replies)
    tally.figure("slowest refusal ms", slowest)


def _hurried(request: bytes) -> bytes:
    """A request with the header that shortens its deadline."""
    line, end, rest = request.partition(b"\r\n")
    return line + end + HEADER + rest
