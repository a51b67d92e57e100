"""Clients of all kinds at a steady rate, for as long as it takes.

Their records stay small: counts, and a latency histogram for each minute.
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

from bench.http_connection import ConnectionLost
from tests.robustness.endurance import request_mix as mix
from tests.robustness.harness.raw_connection import RawConnection
from tests.robustness.harness.reference import TOLERANCE
from tests.robustness.harness.refusal import Refusal
from tests.robustness.harness.traffic import KeepAliveConnection

CLIENTS = 48
TIMEOUT = 30.0
COMPARED = 10  # one response in so many is compared
BINS = np.geomspace(1e-4, 60, 500)  # seconds
MAX_MINUTES = 24 * 60


@dataclass(slots=True)
class Record:
    """Requests by kind, failures by message, and latencies."""

    counts: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    minutes: list[np.ndarray] = field(default_factory=list)  # histograms
    start: float = field(default_factory=time.monotonic)

    def add_latency(self, seconds: float) -> None:
        minute = int((time.monotonic() - self.start) / 60)
        while len(self.minutes) <= min(minute, MAX_MINUTES):
            self.minutes.append(np.zeros(len(BINS) + 1, np.int64))
        self.minutes[-1][np.searchsorted(BINS, seconds)] += 1

    def add_failure(self, message: str) -> None:
        if message in self.failures or len(self.failures) < 20:
            self.failures[message] += 1
        self.counts["failures"] += 1

    def percentile(self, minute: int, rank: float) -> float:
        """Milliseconds: the upper end of a bin."""
        sums = self.minutes[minute].cumsum()
        if not sums[-1]:
            return 0.0
        place = int(np.searchsorted(sums, rank / 100 * sums[-1]))
        return 1000 * float(BINS[min(place, len(BINS) - 1)])


class MixedTraffic:
    """Clients that send requests until `ended` is set."""

    def __init__(self, port: int, rate: float = 0):
        """
        Args:
            rate: requests a second; 0: each client sends its next after a response.
        """
        self._port, self._rate = port, rate
        self._valid, self._invalid = mix.valid_requests(), mix.invalid_requests()
        self._refusals, self._streams = mix.refusals(), mix.streams()
        self.record = Record()
        self.ended = False

    async def run(self) -> None:
        self.record.start = time.monotonic()
        await asyncio.gather(*(self._client(seed) for seed in range(CLIENTS)))

    async def _client(self, seed: int) -> None:
        choice = random.Random(seed)
        connection: KeepAliveConnection | None = None
        raw: RawConnection | None = None
        due = time.monotonic()
        while not self.ended:
            if self._rate:
                due += choice.expovariate(self._rate / CLIENTS)
                # Missed requests are not made up for: they would come in bursts.
                due = max(due, time.monotonic() - 1)
                while (left := due - time.monotonic()) > 0 and not self.ended:
                    await asyncio.sleep(min(left, 0.5))
            kind = choice.random() * 100
            if kind < mix.INVALID * (1 - mix.OTHER_SHARE):
                padded = choice.random() < mix.PADDED_SHARE
                raw = await self._refusal(raw, choice.choice(self._refusals), padded)
            elif kind < mix.VALID + mix.INVALID:
                requests = self._invalid if kind < mix.INVALID else self._valid
                connection = await self._request(connection, choice.choice(requests))
            elif kind < mix.VALID + mix.INVALID + mix.CANCELLED:
                await self._cancel(choice)
            elif kind < 96:
                await self._websocket(choice.choice(self._streams))
            else:
                await self._ndjson(choice.choice(self._streams))
        if connection is not None:
            connection.abort()
        if raw is not None:
            raw.close()

    async def _refusal(
        self, connection: RawConnection | None, refusal: Refusal, padded: bool
    ) -> RawConnection | None:
        """Send an entry of the refusal table; the connection for the next."""
        self.record.counts["invalid"] += 1
        request = refusal.padded_request if padded else refusal.request
        response = b""
        for _ in range(2):  # it may have been idle for too long
            fresh = connection is None or not connection.usable
            try:
                async with asyncio.timeout(TIMEOUT):
                    if connection is None or fresh:
                        connection = await RawConnection.open(self._port)
                    response = await connection.request(request, refusal.frame)
            except (OSError, TimeoutError) as error:
                response = type(error).__name__.encode()
            if response or fresh:
                break
        if not refusal.matches(response):
            self.record.add_failure(f"{refusal.name}: {response[:80]!r}")
        if connection is not None and not connection.usable:
            connection.close()
            return None
        return connection

    async def _request(
        self, connection: KeepAliveConnection | None, request: mix.MixedRequest
    ) -> KeepAliveConnection | None:
        """Send a request; the connection for the next."""
        record, start, kind = self.record, time.monotonic(), request.kind
        record.counts[kind] += 1
        try:
            if connection is None or connection.transport.is_closing():
                connection = await KeepAliveConnection.open(self._port)
            async with asyncio.timeout(TIMEOUT):
                status, body = await connection.request(request.data)
        except (OSError, ConnectionLost, TimeoutError) as error:
            record.add_failure(f"{kind}: {type(error).__name__}")
            if connection is not None:
                connection.abort()
            await asyncio.sleep(0.05)
            return None
        if kind == "native":
            record.add_latency(time.monotonic() - start)
        if status not in request.statuses:
            record.add_failure(f"{kind}: {status} {body[:80]!r}")
        elif request.reference and record.counts[kind] % COMPARED == 0:
            record.counts["compared"] += 1
            if request.reference.difference(body) > TOLERANCE:
                record.add_failure("a wrong response")
        if connection.closing:
            connection.abort()
            return None
        return connection

    async def _cancel(self, choice: random.Random) -> None:
        """Send a request, and disconnect before the response."""
        self.record.counts["cancelled"] += 1
        with suppress(OSError):
            connection = await KeepAliveConnection.open(self._port)
            connection.on_response = lambda *_: None
            connection.send(choice.choice(self._valid).data)
            await asyncio.sleep(0.005 * choice.random())
            connection.abort()

    async def _websocket(self, messages: list[bytes]) -> None:
        self.record.counts["WebSockets"] += 1
        url = f"ws://127.0.0.1:{self._port}/stream?model={mix.STREAM_MODEL}&top_k=1"
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                connect(url, compression=None) as connection,
            ):
                for message in messages:
                    await connection.send(message.decode())
                    response = await connection.recv()
                if '"done"' not in str(response):
                    self.record.add_failure(f"WebSocket: {response[:80]!r}")
        except (OSError, TimeoutError, WebSocketException) as error:
            self.record.add_failure(f"WebSocket: {type(error).__name__}")

    async def _ndjson(self, messages: list[bytes]) -> None:
        self.record.counts["NDJSON"] += 1
        body = b"\n".join(messages) + b"\n"
        head = (
            f"POST /stream?model={mix.STREAM_MODEL}&top_k=1 HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(head.encode() + body)
                response = await reader.read()
                writer.close()
            if b'"done"' not in response:
                self.record.add_failure(f"NDJSON: {response[-80:]!r}")
        except (OSError, TimeoutError) as error:
            self.record.add_failure(f"NDJSON: {type(error).__name__}")
