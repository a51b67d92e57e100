"""Rows F1 and F2: a client with short sequences beside greedy ones hardly waits."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bench.http_connection import Connection
from tests.robustness.harness import reference
from tests.robustness.harness.busy_queue import computed_steps
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, started
from tests.robustness.harness.traffic import Result, Traffic, latency_ms

MODEL = "digits"  # of the client with one step
RATE, CLIENTS = 50.0, 16  # its requests a second, over so many connections
WARM_UP_SECONDS = 2.0  # until all greedy clients are being computed
REQUEST_SECONDS = 60  # no request is refused for its estimated wait
RETRY_SECONDS = 1.0
TIMES, EXTRA_MS = 2, 10  # p99 may be twice that alone, and 10 ms


@row("F1", "One step beside 4 clients of 10,000 steps on another model", full=20)
def other_model(tally: Tally, amount: int) -> None:
    """The p99 latency at most doubles, and 10 ms."""
    _compare(tally, amount, 4, "letters", sequences=1, steps=10_000)


@row("F2", "One step beside 16 clients of 256 x 278 steps on its model", full=20)
def same_model(tally: Tally, amount: int) -> None:
    """The p99 latency at most doubles, and 10 ms."""
    _compare(tally, amount, 16, MODEL, sequences=256, steps=278)


def _compare(
    tally: Tally, seconds: int, greedy: int, name: str, *, sequences: int, steps: int
) -> None:
    # Few bytes: the engine is to work.
    frames = np.zeros((steps, reference.model(name).features), np.int8)
    request = reference.http_request(name, *[frames] * sequences)
    with started(log_level="warning", request_seconds=REQUEST_SECONDS) as service:
        unloaded = _measure(service, seconds)
        with _greedy_clients(service.port, request, greedy):
            time.sleep(WARM_UP_SECONDS)
            before, start = computed_steps(service), time.monotonic()
            beside = _measure(service, seconds)
            rate = (computed_steps(service) - before) / (time.monotonic() - start)
        tally.check(service.is_alive(), "/livez does not respond within a second")
    for result in unloaded + beside:
        tally.check(result.correct, f"status {result.status} {result.body[:200]!r}")
    p99 = latency_ms(beside)
    message = f"p99 {p99:.0f} ms beside others, {latency_ms(unloaded):.1f} alone"
    tally.check(p99 <= TIMES * latency_ms(unloaded) + EXTRA_MS, message)
    tally.check(rate > 2 * RATE, "the greedy requests are not computed")
    for when, results in ("alone", unloaded), ("beside", beside):
        tally.figure(f"p50 ms {when}", latency_ms(results, "p50"))
        tally.figure(f"p99 ms {when}", latency_ms(results))
    tally.figure("steps/s beside", rate)


def _measure(service: Service, seconds: int) -> list[Result]:
    """The responses to the client with one step."""
    request = reference.requests(MODEL, 1, longest=1)
    with Traffic(service.port, request, CLIENTS, rate=RATE) as traffic:
        time.sleep(seconds)
    return traffic.results


@contextmanager
def _greedy_clients(port: int, request: bytes, clients: int) -> Iterator[None]:
    """Clients that send a request after each response, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_send_forever, args=(port, request, clients))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _send_forever(port: int, request: bytes, clients: int) -> None:
    async def client() -> None:
        connection = await Connection.open(port)
        while True:
            if connection.transport.is_closing():
                connection = await Connection.open(port)
            status, _ = await connection.request(request)
            if status != 200:
                await asyncio.sleep(RETRY_SECONDS)

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(run())
