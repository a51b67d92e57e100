"""Closed and open loops: when each request goes out.

Closed loop: each of N connections sends its next request when it has its answer.
Open loop: requests are due at times drawn beforehand, whether the server keeps up
or not, and what is measured counts from the time at which each was due. They go
out on whichever of many connections has been free for longest.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bench.answers import Record, percentiles
from bench.arrivals import Alarm, poisson
from bench.http_connection import Connection

BEAT = 0.02
PATIENCE = 60  # seconds for what is under way when the time is over
UNSENT = -1


@dataclass(frozen=True, slots=True)
class Spec:
    """A run."""

    port: int
    path: str
    folder: str  # of the workload
    seconds: float
    warm: float = 1.0  # seconds before it counts, at least
    connections: int = 1  # closed loop: always busy; open loop: at most
    rate: float = 0  # requests a second of the open loop; 0: closed
    tolerance: float = 1e-4
    seed: int = 0


class Load:
    """What both loops share: connections, and records of what went over them."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        self.spec, self.requests = spec, requests
        self.records: list[Record] = []
        self.connections: set[Connection] = set()
        self.begun = self.ended = False
        self.still = 0.0
        self._tasks: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Connect one after another, each answered once before the next, so that
        every process that accepts gets its share."""
        shortest = min(self.requests, key=len)
        for _ in range(self.spec.connections):
            connection = await Connection.open(self.spec.port)
            await connection.ask(shortest)
            self._adopt(connection)

    def close(self) -> None:
        for connection in self.connections:
            connection.abort()

    async def watch(self) -> None:
        """Measure the longest time for which the loop itself stood still: whatever
        stops the generator must not pass for the server's doing."""
        last = time.perf_counter()
        while not self.ended:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            self.still, last = max(self.still, now - last - BEAT), now

    async def settle(self) -> None:
        """Wait for the answers that are under way."""
        self.ended = True
        end = time.perf_counter() + PATIENCE
        while self._tasks or any(c.busy for c in self.connections):
            if time.perf_counter() > end:
                break
            await asyncio.sleep(0.01)
        for connection in self.connections:
            if connection.busy:
                self._record(connection, 0, b"")

    def free(self, connection: Connection) -> None:
        """A connection has nothing to do."""
        raise NotImplementedError

    def _adopt(self, connection: Connection) -> None:
        connection.answered, connection.lost = self._answered, self._lost
        self.connections.add(connection)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        self._record(connection, status, body)
        self.free(connection)

    def _record(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        record = Record(connection.place, connection.begun, now, status, body)
        self.records.append(record)

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.busy:
            self._record(connection, 0, b"")
        task = asyncio.get_running_loop().create_task(self._again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _again(self) -> None:
        while not self.ended:
            with suppress(OSError):
                connection = await Connection.open(self.spec.port)
                self._adopt(connection)
                if self.begun:
                    self.free(connection)
                return
            await asyncio.sleep(0.05)


class Closed(Load):
    """As fast as the server answers."""

    _next = 0

    def free(self, connection: Connection) -> None:
        if self.ended:
            return
        connection.place = self._next % len(self.requests)
        self._next += 1
        connection.begun = time.perf_counter()
        connection.send(self.requests[connection.place])

    async def run(self) -> dict[str, Any]:
        await self.open()
        self.begun, begun = True, time.perf_counter()
        for connection in list(self.connections):
            self.free(connection)
        await asyncio.sleep(self.spec.warm)
        # A slow server: until the first wave, all short ones first, is over.
        while len(self.records) < 2 * self.spec.connections:
            if time.perf_counter() > begun + self.spec.warm + PATIENCE / 4:
                break
            await asyncio.sleep(0.01)
        start, count, used = time.perf_counter(), len(self.records), time.process_time()
        await asyncio.sleep(self.spec.seconds)
        stop, used = time.perf_counter(), time.process_time() - used
        count = len(self.records) - count
        await self.settle()
        return {"start": start, "stop": stop, "cpu_us": 1e6 * used / max(count, 1)}

    def counts(self, record: Record, start: float, stop: float) -> bool:
        return start < record.done <= stop


class Open(Load):
    """At a given rate."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        super().__init__(spec, requests)
        self.idle: deque[Connection] = deque()
        self.due: deque[tuple[int, float]] = deque()  # a connection is awaited
        self.lags: list[float] = []

    def free(self, connection: Connection) -> None:
        if self.due:
            self._send(connection, *self.due.popleft())
        else:
            self.idle.append(connection)

    def _arrive(self, place: int, due: float) -> None:
        while self.idle:
            connection = self.idle.popleft()
            if connection in self.connections:
                self.lags.append(time.perf_counter() - due)
                return self._send(connection, place, due)
        self.due.append((place, due))

    def _send(self, connection: Connection, place: int, due: float) -> None:
        connection.place, connection.begun = place, due
        connection.send(self.requests[place])

    async def run(self) -> dict[str, Any]:
        await self.open()
        self.begun = True
        self.idle.extend(self.connections)
        start = time.perf_counter() + 0.01
        spec = self.spec
        times = poisson(spec.rate, spec.warm + spec.seconds, spec.seed)
        used = time.process_time()
        with Alarm() as alarm:
            for number, due in enumerate(times):
                await alarm.at(start + due)
                self._arrive(number % len(self.requests), start + due)
        used = time.process_time() - used
        unsent, self.due = self.due, deque()
        await self.settle()
        now = time.perf_counter()
        for place, due in unsent:
            self.records.append(Record(place, due, now, UNSENT, b""))
        return {
            "start": start + spec.warm,
            "stop": start + spec.warm + spec.seconds,
            "cpu_us": 1e6 * used / max(len(times), 1),
            "lag_ms": percentiles(self.lags),
        }

    def counts(self, record: Record, start: float, stop: float) -> bool:
        return start < record.begun <= stop
