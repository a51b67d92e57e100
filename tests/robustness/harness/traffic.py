"""Ordinary clients, in a thread: they ask questions over connections that stay open,
and keep what they were told."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from dataclasses import dataclass
from typing import Self

import uvloop

from bench.answers import percentiles
from bench.http_connection import Broken, Connection
from tests.robustness.harness.reference import EXACT, Question

PATIENCE = 30.0  # seconds for an answer
LOST, REFUSED = 0, -1  # in place of a status: hung up; not even connected
MOST = 200_000  # answers that are kept


class Caller(Connection):
    """A connection that knows when the server wants it to be the last answer."""

    closing = False

    def _begin(self, data: bytes) -> bool:
        whole = super()._begin(data)
        if whole:
            end = self._head.find(b"\r\n\r\n")
            self.closing |= b"\r\nconnection: close" in self._head[:end].lower()
        return whole


@dataclass(frozen=True, slots=True)
class Told:
    """A question and what was answered; times of `time.monotonic`."""

    question: Question
    sent: float
    done: float
    status: int
    body: bytes

    @property
    def right(self) -> bool:
        return self.status == 200 and self.question.difference(self.body) <= EXACT


class Traffic:
    """Clients that ask for as long as the block lasts.

    Args:
        rate: questions a second, of all together, at random times; 0: each client
            asks when it has its answer.
        count: questions of each client; 0: without end.
        fields: lines of the head, for all of them.
    """

    def __init__(
        self,
        port: int,
        questions: list[Question],
        clients: int = 32,
        rate: float = 0,
        count: int = 0,
        fields: bytes = b"",
    ):
        self._port, self._rate, self._clients = port, rate, clients
        self._count = count
        self._requests = [(one, headed(one.bytes, fields)) for one in questions]
        self._places = itertools.cycle(range(len(questions)))
        self._ended = False
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self.told: list[Told] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """What is under way is still answered."""
        self._ended = True
        self.join()

    def join(self) -> None:
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive(), "a client hangs"

    def since(self, begun: float, until: float = float("inf")) -> list[Told]:
        """What was asked in a time."""
        return [one for one in self.told if begun <= one.sent < until]

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(seed) for seed in range(self._clients)))

    async def _client(self, seed: int) -> None:
        draw = random.Random(seed)
        connection: Caller | None = None
        done, due = 0, time.monotonic()
        while not self._ended and len(self.told) < MOST:
            if self._rate:
                due += draw.expovariate(self._rate / self._clients)
                while (left := due - time.monotonic()) > 0 and not self._ended:
                    await asyncio.sleep(min(left, 0.2))
                if self._ended:
                    break
            question, sent = self._requests[next(self._places)]
            connection = await self._ask(connection, question, sent)
            done += 1
            if done == self._count:
                break
        if connection is not None:
            connection.abort()

    async def _ask(
        self, connection: Caller | None, question: Question, request: bytes
    ) -> Caller | None:
        """The connection to go on with; None: another one."""
        begun = time.monotonic()
        status, body = REFUSED, b""
        try:
            if connection is None or connection.transport.is_closing():
                connection = await Caller.open(self._port)
            status = LOST
            async with asyncio.timeout(PATIENCE):
                status, body = await connection.ask(request)
        except (OSError, Broken, TimeoutError):
            if connection is not None:
                connection.abort()
            connection = None
            await asyncio.sleep(0.02)  # don't hammer on a closed port
        told = Told(question, begun, time.monotonic(), status, body)
        self.told.append(told)
        if connection is not None and connection.closing:
            with contextlib.suppress(OSError):
                connection.abort()
            connection = None
        return connection


def headed(request: bytes, fields: bytes) -> bytes:
    """A request with more lines in its head."""
    line, end, rest = request.partition(b"\r\n")
    return line + end + fields + rest


def saturation(
    port: int, questions: list[Question], seconds: float = 2, fields: bytes = b""
) -> float:
    """What is answered a second, when 32 clients ask as fast as they can."""
    with Traffic(port, questions, fields=fields) as traffic:
        time.sleep(0.5)
        begun = time.monotonic()
        time.sleep(seconds)
    good = [one for one in traffic.told if begun < one.done <= begun + seconds]
    return sum(one.status == 200 for one in good) / seconds


def p(told: list[Told], rank: str = "p99") -> float:
    """Milliseconds of a percentile."""
    found = percentiles([one.done - one.sent for one in told])
    return found[rank] if found else float("inf")
