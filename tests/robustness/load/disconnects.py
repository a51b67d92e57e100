"""Row B6: nothing more is computed for clients that disconnect while queued."""

import asyncio
import time

from bench.http_connection import Connection
from tests.robustness.harness import reference
from tests.robustness.harness.busy_queue import (
    LONG_SEQUENCES,
    LONG_STEPS,
    MODEL,
    ONE_AT_A_TIME,
    busy,
    computed_steps,
    wait_admitted,
    wait_idle,
)
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving

STEPS = 28
UNDER_WAY = 2  # sequences that may be in a batch when their clients disconnect
DROPPED = ("unrolled_dropped_sequences_total",)
DISCONNECTED = ("http_server_request_duration_seconds_count", 'status="499"')


@row("B6", "Clients that disconnect while queued", full=500, fast=200)
def disconnects(tally: Tally, amount: int) -> None:
    """Their sequences are dropped, and counted as 499."""
    with serving(tally, request_seconds=60, **ONE_AT_A_TIME) as service:
        asyncio.run(_disconnect(tally, service, amount))


async def _disconnect(tally: Tally, service: Service, amount: int) -> None:
    request = reference.request_of_length(MODEL, STEPS)
    before = computed_steps(service)
    disconnected_before = service.metric(*DISCONNECTED)
    async with busy(service, 1) as long_replies:
        clients = [await Connection.open(service.port) for _ in range(amount)]
        for client in clients:
            client.on_response = lambda *_: None  # may come before the disconnect
            client.send(request.http_request)
        queued = await wait_admitted(service, amount + LONG_SEQUENCES)
        tally.check(queued, "the requests are not queued")
        for client in clients:
            client.abort()
        start = time.monotonic()
    statuses = [reply.status for reply in long_replies]
    tally.check(statuses == [200], f"the queue got {statuses}")
    tally.check(await wait_idle(service), "steps wait forever")
    tally.figure("the queue lasted s", time.monotonic() - start)
    dropped = await asyncio.to_thread(service.metric, *DROPPED)
    computed = await asyncio.to_thread(computed_steps, service)
    steps = computed - before - LONG_SEQUENCES * LONG_STEPS
    for place in range(amount):  # each client counts
        fine = place < dropped + UNDER_WAY
        tally.check(fine, "a client's sequence was not dropped")
    count = steps / STEPS
    tally.check(count <= UNDER_WAY, f"{count:.0f} were computed for nobody")
    counted = await asyncio.to_thread(service.metric, *DISCONNECTED)
    counted -= disconnected_before
    tally.check(counted == amount, f"{counted:.0f} of {amount} are counted as 499")
    tally.figure("dropped", dropped)
    async with asyncio.timeout(5):  # the event loop still runs
        client = await Connection.open(service.port)
        status, body = await client.request(request.http_request)
        client.abort()
    tally.check(request.is_correct(status, body), f"afterwards a client gets {status}")
