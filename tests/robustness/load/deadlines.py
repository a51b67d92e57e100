"""Row B5: requests with a deadline are refused in time, and not computed."""

import asyncio
import time

from tests.robustness.harness import reference
from tests.robustness.harness.burst import Reply, send, send_all
from tests.robustness.harness.busy_queue import (
    LONG_SEQUENCES,
    LONG_STEPS,
    MODEL,
    ONE_AT_A_TIME,
    busy,
    computed_steps,
    wait_idle,
)
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.fault_injection import HANGS, MODULE
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import with_fields
from tests.robustness.load.isolation import poison

DEADLINE_MS = 50
SLACK_MS = 50
FAST = 100
LONG_REQUESTS = 2
INTERVAL = 0.0025  # seconds between requests
FIELDS = f"X-Request-Timeout-Ms: {DEADLINE_MS}\r\n".encode()


@row("B5", "Deadlines of 50 ms behind a full queue and a hanging engine", full=200, fast=FAST)  # fmt: skip
def deadlines(tally: Tally, amount: int) -> None:
    """Every request gets 503 or 504 within its deadline and 50 ms."""
    valid = reference.requests(MODEL, 20)
    requests = [
        with_fields(valid[n % len(valid)].http_request, FIELDS) for n in range(amount)
    ]
    settings = ONE_AT_A_TIME | {"module": MODULE, "request_seconds": 60}
    with serving(tally, **settings) as service:
        asyncio.run(_behind_queue(tally, service, requests))
        if amount > FAST:  # stopping the hanging worker takes seconds
            asyncio.run(_behind_hanging_engine(tally, service, requests))


async def _behind_hanging_engine(
    tally: Tally, service: Service, requests: list[bytes]
) -> None:
    """The wait cannot be estimated: requests are admitted, and their time runs out."""
    before = await asyncio.to_thread(computed_steps, service)
    hanging = asyncio.create_task(send(service.port, poison(HANGS), timeout=10))
    await asyncio.sleep(0.2)
    replies = await send_all(service.port, requests, interval=INTERVAL)
    _check_in_time(tally, replies)
    computed = await asyncio.to_thread(computed_steps, service) - before
    tally.check(computed == 0, f"{computed} steps of refused requests were computed")
    expired = sum(reply.status == 504 for reply in replies)
    tally.figure("504 behind a hanging engine", expired)
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def _behind_queue(tally: Tally, service: Service, requests: list[bytes]) -> None:
    before = await asyncio.to_thread(computed_steps, service)
    start = time.monotonic()
    async with busy(service, LONG_REQUESTS) as long_replies:
        replies = await send_all(service.port, requests, interval=INTERVAL)
    statuses = [reply.status for reply in long_replies]
    tally.check(statuses == [200] * LONG_REQUESTS, f"the queue got {statuses}")
    tally.check(await wait_idle(service), "steps wait forever")
    _check_in_time(tally, replies)
    computed = await asyncio.to_thread(computed_steps, service) - before
    extra = computed - LONG_REQUESTS * LONG_SEQUENCES * LONG_STEPS
    tally.check(extra == 0, f"{extra} steps of refused requests were computed")
    tally.figure("seconds of queued work", time.monotonic() - start)


def _check_in_time(tally: Tally, replies: list[Reply]) -> None:
    for reply in replies:
        ms = 1000 * reply.seconds
        in_time = reply.status in (503, 504) and ms <= DEADLINE_MS + SLACK_MS
        tally.check(in_time, f"{reply.status} after {ms:.0f} ms")
    slowest = 1000 * max(reply.seconds for reply in replies)
    tally.figure("slowest refusal ms", slowest)
