"""Callers that go before they are answered: nothing more is computed for them."""

import asyncio
import time

from bench.http_connection import Connection
from tests.robustness.harness import reference
from tests.robustness.harness.busy_queue import (
    LONG,
    NETWORK,
    ONE_LANE,
    PART,
    congested,
    queued,
    settled,
    useful,
)
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving

STEPS = 28
TICKS = 2  # jobs that may be under way when their caller goes


@row("B6", "callers that hang up while queued", full=500, fast=200)
def dropped(tally: Tally, amount: int) -> None:
    with serving(tally, request_seconds=60, **ONE_LANE) as service:
        asyncio.run(_row(tally, service, amount))


async def _row(tally: Tally, service: Service, amount: int) -> None:
    rng = reference.np.random.default_rng(0)
    frames = reference.alone(NETWORK).sequence(rng, STEPS)
    question = reference.ask(NETWORK, frames)
    before, gone = useful(service), service.metric(*GONE)
    async with congested(service, 1) as fillers:
        callers = [await Connection.open(service.port) for _ in range(amount)]
        for caller in callers:
            caller.answered = lambda *_: None  # one may be answered before it goes
            caller.send(question.bytes)
        waits = await queued(service, amount + PART)
        tally.check(waits, "the requests do not wait")
        for caller in callers:
            caller.abort()
        left = time.monotonic()
    tally.check([one.status for one in fillers] == [200], f"the queue: {fillers}")
    tally.check(await settled(service), "steps wait for ever")
    tally.figure("the queue lasted s", time.monotonic() - left)
    counted = await asyncio.to_thread(service.metric, *DROPPED)
    steps = await asyncio.to_thread(useful, service) - before - PART * LONG
    for place in range(amount):  # each counts: x of N were not computed
        tally.check(place < counted + TICKS, "a caller's sequence was not dropped")
    tally.check(steps <= TICKS * STEPS, f"{steps / STEPS:.0f} were computed for nobody")
    went = await asyncio.to_thread(service.metric, *GONE) - gone
    tally.check(went == amount, f"{went:.0f} of {amount} are counted as gone")
    tally.figure("dropped", counted)
    async with asyncio.timeout(5):  # the loop is alive
        caller = await Connection.open(service.port)
        status, body = await caller.ask(question.bytes)
        caller.abort()
    right = status == 200 and question.difference(body) <= reference.EXACT
    tally.check(right, f"afterwards a caller gets {status}")


DROPPED = ("unrolled_dropped_sequences_total",)
GONE = ("http_server_request_duration_seconds_count", 'status="499"')
