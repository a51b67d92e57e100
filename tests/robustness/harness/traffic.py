"""Well-behaved clients in a thread: they keep connections open and record responses."""

import asyncio
import itertools
import random
import threading
import time
from dataclasses import dataclass
from typing import Self

import uvloop

from bench.http_connection import Connection, ConnectionLost
from bench.responses import percentiles
from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.reference import ReferenceRequest

TIMEOUT = 30.0  # seconds for a response
LOST, REFUSED = 0, -1  # in place of a status: no response; not even connected
MAX_RESULTS = 200_000


class KeepAliveConnection(Connection):
    """A connection that knows whether the server will close it."""

    closing = False

    def _parse_head(self, data: bytes) -> bool:
        complete = super()._parse_head(data)
        if complete:
            end = self._head.find(b"\r\n\r\n")
            self.closing |= b"\r\nconnection: close" in self._head[:end].lower()
        return complete


@dataclass(frozen=True, slots=True)
class Result:
    """A request and its response; times of `time.monotonic`."""

    request: ReferenceRequest
    sent: float
    done: float
    status: int
    body: bytes

    @property
    def correct(self) -> bool:
        return self.request.is_correct(self.status, self.body)


class Traffic:
    """Clients that send requests until the block ends.

    Args:
        rate: requests a second of all together (Poisson); 0: each client sends its
            next request after a response.
        count: requests of each client; 0: no limit.
        fields: header lines of every request.
    """

    def __init__(
        self,
        port: int,
        requests: list[ReferenceRequest],
        clients: int = 32,
        rate: float = 0,
        count: int = 0,
        fields: bytes = b"",
    ):
        self._port, self._rate, self._clients = port, rate, clients
        self._count = count
        self._requests = [(r, with_fields(r.http_request, fields)) for r in requests]
        self._places = itertools.cycle(range(len(requests)))
        self._ended = False
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self.results: list[Result] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self.join()

    def join(self) -> None:
        """Wait for the responses under way, or for `count` of them."""
        self._thread.join(2 * TIMEOUT)
        assert not self._thread.is_alive(), "a client hangs"

    def sent_between(self, start: float, end: float = float("inf")) -> list[Result]:
        return [result for result in self.results if start <= result.sent < end]

    def check(self, tally: Tally, where: str = "") -> None:
        """Check that every response is correct."""
        for result in self.results:
            got = f"{result.status} {result.body[:80]!r}"
            tally.check(result.correct, f"{where} an honest request got {got}".strip())

    @property
    def p99(self) -> float:
        return latency_ms(self.results)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(seed) for seed in range(self._clients)))

    async def _client(self, seed: int) -> None:
        random_ = random.Random(seed)
        connection: KeepAliveConnection | None = None
        done, due = 0, time.monotonic()
        while not self._ended and len(self.results) < MAX_RESULTS:
            if self._rate:
                due += random_.expovariate(self._rate / self._clients)
                while (left := due - time.monotonic()) > 0 and not self._ended:
                    await asyncio.sleep(min(left, 0.2))
                if self._ended:
                    break
            request, data = self._requests[next(self._places)]
            connection = await self._send(connection, request, data)
            done += 1
            if done == self._count:
                break
        if connection is not None:
            connection.abort()

    async def _send(
        self,
        connection: KeepAliveConnection | None,
        request: ReferenceRequest,
        data: bytes,
    ) -> KeepAliveConnection | None:
        """The connection for the next request, None if it needs a new one."""
        start = time.monotonic()
        status, body = REFUSED, b""
        try:
            if connection is None or connection.transport.is_closing():
                connection = await KeepAliveConnection.open(self._port)
            status = LOST
            async with asyncio.timeout(TIMEOUT):
                status, body = await connection.request(data)
        except (OSError, ConnectionLost, TimeoutError):
            if connection is not None:
                connection.abort()
            connection = None
            await asyncio.sleep(0.02)  # no busy loop on a closed port
        result = Result(request, start, time.monotonic(), status, body)
        self.results.append(result)
        if connection is not None and connection.closing:
            connection.abort()
            return None
        return connection


def with_fields(request: bytes, fields: bytes) -> bytes:
    """A request with more header lines."""
    line, end, rest = request.partition(b"\r\n")
    return line + end + fields + rest


def baseline(
    port: int, requests: list[ReferenceRequest], clients: int, rate: float,
    seconds: float, fields: bytes = b"",
) -> float:  # fmt: skip
    """The p99 latency in ms without attackers."""
    with Traffic(port, requests, clients, rate, fields=fields) as traffic:
        time.sleep(seconds)
    return traffic.p99


def capacity(
    port: int, requests: list[ReferenceRequest], seconds: float = 2, fields: bytes = b""
) -> float:
    """Responses a second when 32 clients send as fast as they can."""
    with Traffic(port, requests, fields=fields) as traffic:
        time.sleep(0.5)
        start = time.monotonic()
        time.sleep(seconds)
    counted = [r for r in traffic.results if start < r.done <= start + seconds]
    return sum(result.status == 200 for result in counted) / seconds


def latency_ms(results: list[Result], rank: str = "p99") -> float:
    """A percentile of the latency in milliseconds."""
    latencies = percentiles([result.done - result.sent for result in results])
    return latencies[rank] if latencies else float("inf")
