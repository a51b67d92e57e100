"""A caller of one step beside greedy ones: each has its share, so it hardly waits."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bench.http_connection import Connection
from tests.robustness.harness import reference
from tests.robustness.harness.busy_queue import useful
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, started
from tests.robustness.harness.traffic import Told, Traffic, p

NETWORK = "digits"  # whose answer the caller of one step wants
RATE, CLIENTS = 50.0, 16  # of its requests a second, over so many connections
BEGIN_SECONDS = 2.0  # until all the others are under way
PATIENT = 60  # seconds for an answer: none is refused for what it would wait
AGAIN_SECONDS = 1.0  # after which a refused one asks again, as it is told to
# What the caller may wait beside the others.
TIMES, MORE_MS = 2, 10


@row("F1", "one step beside 4 callers of 10,000 steps on another model", full=20)
def other_model(tally: Tally, amount: int) -> None:
    _try(tally, amount, others=4, name="letters", sequences=1, steps=10_000)


@row("F2", "one step beside 16 callers of 256 x 278 steps on its model", full=20)
def same_model(tally: Tally, amount: int) -> None:
    _try(tally, amount, others=16, name=NETWORK, sequences=256, steps=278)


def _try(
    tally: Tally, seconds: int, *, others: int, name: str, sequences: int, steps: int
) -> None:
    features = reference.alone(name).metadata.input.features
    frames = np.zeros((steps, features), np.int8)  # few bytes: the engine is to work
    body = reference.body(name, *[frames] * sequences)
    asked = reference.request(reference.path(name), body)
    with started(log_level="warning", request_seconds=PATIENT) as service:
        alone = _measured(service, seconds)
        with _greedy(service.port, asked, others):
            time.sleep(BEGIN_SECONDS)
            before, begun = useful(service), time.monotonic()
            beside = _measured(service, seconds)
            rate = (useful(service) - before) / (time.monotonic() - begun)
        tally.check(service.lives(), "/livez does not answer 200 within a second")
    for one in alone + beside:
        tally.check(one.right, f"status {one.status} {one.body[:200]!r}")
    allowed = TIMES * p(alone) + MORE_MS
    told = f"p99 {p(beside):.0f} ms beside others, {p(alone):.1f} alone"
    tally.check(p(beside) <= allowed, told)
    tally.check(rate > 2 * RATE, "none of the others is computed")
    for when, told_then in ("alone", alone), ("beside", beside):
        tally.figure(f"p50 ms {when}", p(told_then, "p50"))
        tally.figure(f"p99 ms {when}", p(told_then))
    tally.figure("steps/s beside", rate)


def _measured(service: Service, seconds: int) -> list[Told]:
    """What the caller was told."""
    question = reference.some(NETWORK, 1, longest=1)
    with Traffic(service.port, question, CLIENTS, rate=RATE) as traffic:
        time.sleep(seconds)
    return traffic.told


@contextmanager
def _greedy(port: int, request: bytes, callers: int) -> Iterator[None]:
    """So many callers, who ask again when they are answered, in a process of their
    own."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_ask, args=(port, request, callers))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _ask(port: int, request: bytes, callers: int) -> None:
    async def one() -> None:
        connection = await Connection.open(port)
        while True:
            if connection.transport.is_closing():
                connection = await Connection.open(port)
            status, _ = await connection.ask(request)
            if status != 200:
                await asyncio.sleep(AGAIN_SECONDS)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(callers)))

    asyncio.run(all_of_them())
