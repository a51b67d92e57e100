"""Callers of all kinds, at a steady rate, for as long as it takes.

What they keep does not grow: counts, and of each minute how many answers took how
long.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from bench.http_connection import Broken
from tests.robustness.endurance import request_mix
from tests.robustness.harness.raw_connection import Exchange
from tests.robustness.harness.reference import EXACT
from tests.robustness.harness.refusal import Refused
from tests.robustness.harness.traffic import Caller

CLIENTS = 48
PATIENCE = 30.0
COMPARED = 10  # of so many answers one is
BINS = np.geomspace(1e-4, 60, 500)  # seconds
MOST_MINUTES = 24 * 60


@dataclass(slots=True)
class Book:
    """What was seen."""

    counts: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)  # by what they were
    minutes: list[np.ndarray] = field(default_factory=list)  # answers by duration
    begun: float = field(default_factory=time.monotonic)

    def took(self, seconds: float) -> None:
        minute = int((time.monotonic() - self.begun) / 60)
        while len(self.minutes) <= min(minute, MOST_MINUTES):
            self.minutes.append(np.zeros(len(BINS) + 1, np.int64))
        self.minutes[-1][np.searchsorted(BINS, seconds)] += 1

    def fault(self, told: str) -> None:
        if told in self.faults or len(self.faults) < 20:
            self.faults[told] += 1
        self.counts["faults"] += 1

    def percentile(self, minute: int, rank: float) -> float:
        """Milliseconds, by the upper end of a bin."""
        sums = self.minutes[minute].cumsum()
        if not sums[-1]:
            return 0.0
        place = int(np.searchsorted(sums, rank / 100 * sums[-1]))
        return 1000 * float(BINS[min(place, len(BINS) - 1)])


class Visitors:
    """They come until told to end."""

    def __init__(self, port: int, rate: float = 0):
        """
        Args:
            rate: visits a second; 0: each comes again when it has its answer.
        """
        self._port, self._rate = port, rate
        self._good, self._bad = request_mix.good(), request_mix.bad()
        self._refused = request_mix.refused()
        self._streams = request_mix.streams()
        self.book = Book()
        self.ended = False

    async def run(self) -> None:
        self.book.begun = time.monotonic()
        await asyncio.gather(*(self._visit(seed) for seed in range(CLIENTS)))

    async def _visit(self, seed: int) -> None:
        draw = random.Random(seed)
        connection: Caller | None = None
        exchange: Exchange | None = None
        due = time.monotonic()
        while not self.ended:
            if self._rate:
                due += draw.expovariate(self._rate / CLIENTS)
                # It does not make up for what it missed, else it would come in crowds.
                due = max(due, time.monotonic() - 1)
                while (left := due - time.monotonic()) > 0 and not self.ended:
                    await asyncio.sleep(min(left, 0.5))
            what = draw.random() * 100
            if what < request_mix.BAD * (1 - request_mix.OTHERS):
                one, padded = (
                    draw.choice(self._refused),
                    draw.random() < request_mix.PADDED,
                )
                exchange = await self._refuse(exchange, one, padded)
            elif what < request_mix.GOOD + request_mix.BAD:
                kind = self._bad if what < request_mix.BAD else self._good
                connection = await self._ask(connection, draw.choice(kind))
            elif what < request_mix.GOOD + request_mix.BAD + request_mix.CANCELLED:
                await self._cancel(draw)
            elif what < 96:
                await self._web_socket(draw.choice(self._streams))
            else:
                await self._lines(draw.choice(self._streams))
        if connection is not None:
            connection.abort()
        if exchange is not None:
            exchange.close()

    async def _refuse(
        self, exchange: Exchange | None, one: Refused, padded: bool
    ) -> Exchange | None:
        """Be refused; the connection to go on with."""
        self.book.counts["bad"] += 1
        sent, answer = one.padded if padded else one.request, b""
        for _ in range(2):  # it may have been idle for too long
            fresh = exchange is None or not exchange.usable
            try:
                async with asyncio.timeout(PATIENCE):
                    if exchange is None or fresh:
                        exchange = await Exchange.open(self._port)
                    answer = await exchange.ask(sent, one.frame)
            except (OSError, TimeoutError) as error:
                answer = type(error).__name__.encode()
            if answer or fresh:
                break
        if not one.fits(answer):
            self.book.fault(f"{one.name}: {answer[:80]!r}")
        if exchange is not None and not exchange.usable:
            exchange.close()
            return None
        return exchange

    async def _ask(
        self, connection: Caller | None, asked: request_mix.Asked
    ) -> Caller | None:
        book, begun = self.book, time.monotonic()
        book.counts[asked.kind] += 1
        try:
            if connection is None or connection.transport.is_closing():
                connection = await Caller.open(self._port)
            async with asyncio.timeout(PATIENCE):
                status, body = await connection.ask(asked.request)
        except (OSError, Broken, TimeoutError) as error:
            book.fault(f"{asked.kind}: {type(error).__name__}")
            if connection is not None:
                connection.abort()
            await asyncio.sleep(0.05)
            return None
        if asked.kind == "native":
            book.took(time.monotonic() - begun)
        if status not in asked.statuses:
            book.fault(f"{asked.kind}: {status} {body[:80]!r}")
        elif asked.question and book.counts[asked.kind] % COMPARED == 0:
            book.counts["compared"] += 1
            if asked.question.difference(body) > EXACT:
                book.fault("a wrong answer")
        if connection.closing:
            connection.abort()
            return None
        return connection

    async def _cancel(self, draw: random.Random) -> None:
        """Ask, and go before the answer."""
        self.book.counts["cancelled"] += 1
        with suppress(OSError):
            connection = await Caller.open(self._port)
            connection.answered = lambda *_: None
            connection.send(draw.choice(self._good).request)
            await asyncio.sleep(0.005 * draw.random())
            connection.abort()

    async def _web_socket(self, messages: list[bytes]) -> None:
        self.book.counts["web sockets"] += 1
        url = f"ws://127.0.0.1:{self._port}/stream?model={request_mix.STREAMED}&top_k=1"
        try:
            async with (
                asyncio.timeout(PATIENCE),
                connect(url, compression=None) as socket,
            ):
                for message in messages:
                    await socket.send(message.decode())
                    answer = await socket.recv()
                if '"done"' not in str(answer):
                    self.book.fault(f"web socket: {answer[:80]!r}")
        except (OSError, TimeoutError, WebSocketException) as error:
            self.book.fault(f"web socket: {type(error).__name__}")

    async def _lines(self, messages: list[bytes]) -> None:
        self.book.counts["JSON lines"] += 1
        body = b"\n".join(messages) + b"\n"
        head = (
            f"POST /stream?model={request_mix.STREAMED}&top_k=1 HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(head.encode() + body)
                answer = await reader.read()
                writer.close()
            if b'"done"' not in answer:
                self.book.fault(f"JSON lines: {answer[-80:]!r}")
        except (OSError, TimeoutError) as error:
            self.book.fault(f"JSON lines: {type(error).__name__}")
