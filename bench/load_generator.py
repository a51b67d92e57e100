"""The load generator: closed and open loops, in a process of its own.

    python -m bench.load_generator SPEC        JSON in, JSON out

Closed loop: each of N connections sends its next request after a response. Open loop:
requests are due at random times (Poisson), whether the server keeps up or not; latency
counts from the due time; the connection that has been idle for longest sends next.

The process shares no interpreter with the server and has a higher priority, where it
may: real clients are on other machines and do not wait for the server's cores.
"""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import uvloop

from bench.environment import ROOT
from bench.http_connection import Connection, post_request
from bench.responses import (
    DISCONNECTED,
    Record,
    Reference,
    correct_records,
    latencies,
    percentiles,
)

PRIORITY = -10
LAG_CHECK_SECONDS = 0.02
TIMEOUT = 60  # seconds for outstanding responses at the end
UNSENT = -1  # in place of a status


@dataclass(frozen=True, slots=True)
class Spec:
    """A run."""

    port: int
    path: str
    folder: str  # of the workload
    seconds: float
    warm_up: float = 1.0  # seconds, at least
    connections: int = 1  # closed loop: always busy; open loop: at most
    rate: float = 0  # requests a second of an open loop; 0: closed
    tolerance: float = 1e-4
    seed: int = 0


class Loop:
    """Connections, and records of their requests."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        self.spec, self.requests = spec, requests
        self.records: list[Record] = []
        self.connections: set[Connection] = set()
        self.running = self.ended = False
        self.stalled = 0.0  # the longest time that the event loop stood still
        self._tasks: set[asyncio.Task] = set()

    async def open(self) -> None:
        """Open connections, each with a request before the next, so that every process
        that accepts gets its share."""
        shortest = min(self.requests, key=len)
        for _ in range(self.spec.connections):
            connection = await Connection.open(self.spec.port)
            await connection.request(shortest)
            self._adopt(connection)

    def close(self) -> None:
        for connection in self.connections:
            connection.abort()

    async def measure_stalls(self) -> None:
        """Measure how long the event loop stands still: delays of the generator must
        not count as the server's."""
        last = time.perf_counter()
        while not self.ended:
            await asyncio.sleep(LAG_CHECK_SECONDS)
            now = time.perf_counter()
            self.stalled = max(self.stalled, now - last - LAG_CHECK_SECONDS)
            last = now

    async def finish(self) -> None:
        """Wait for the outstanding responses."""
        self.ended = True
        deadline = time.perf_counter() + TIMEOUT
        while self._tasks or any(c.busy for c in self.connections):
            if time.perf_counter() > deadline:
                break
            await asyncio.sleep(0.01)
        for connection in self.connections:
            if connection.busy:
                self._record(connection, DISCONNECTED, b"")

    def on_idle(self, connection: Connection) -> None:
        """A connection may send its next request."""
        raise NotImplementedError

    async def run(self) -> dict[str, Any]:
        raise NotImplementedError

    def counts(self, record: Record, start: float, stop: float) -> bool:
        """A record falls into the measured time."""
        raise NotImplementedError

    def _send(self, connection: Connection, place: int, due: float) -> None:
        connection.place, connection.sent = place, due
        connection.send(self.requests[place])

    def _adopt(self, connection: Connection) -> None:
        connection.on_response, connection.on_lost = self._on_response, self._on_lost
        self.connections.add(connection)

    def _on_response(self, connection: Connection, status: int, body: bytes) -> None:
        self._record(connection, status, body)
        self.on_idle(connection)

    def _record(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        record = Record(connection.place, connection.sent, now, status, body)
        self.records.append(record)

    def _on_lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.busy:
            self._record(connection, DISCONNECTED, b"")
        task = asyncio.get_running_loop().create_task(self._reconnect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconnect(self) -> None:
        while not self.ended:
            with suppress(OSError):
                connection = await Connection.open(self.spec.port)
                self._adopt(connection)
                if self.running:
                    self.on_idle(connection)
                return
            await asyncio.sleep(0.05)


class ClosedLoop(Loop):
    """As fast as the server responds."""

    _next = 0

    def on_idle(self, connection: Connection) -> None:
        if not self.ended:
            place, self._next = self._next % len(self.requests), self._next + 1
            self._send(connection, place, time.perf_counter())

    async def run(self) -> dict[str, Any]:
        await self.open()
        self.running, begin = True, time.perf_counter()
        for connection in list(self.connections):
            self.on_idle(connection)
        await asyncio.sleep(self.spec.warm_up)
        # With a slow server, until two waves of requests are over.
        while len(self.records) < 2 * self.spec.connections:
            if time.perf_counter() > begin + self.spec.warm_up + TIMEOUT / 4:
                break
            await asyncio.sleep(0.01)
        start, count, cpu = time.perf_counter(), len(self.records), time.process_time()
        await asyncio.sleep(self.spec.seconds)
        stop, cpu = time.perf_counter(), time.process_time() - cpu
        count = len(self.records) - count
        await self.finish()
        return {"start": start, "stop": stop, "cpu_us": 1e6 * cpu / max(count, 1)}

    def counts(self, record: Record, start: float, stop: float) -> bool:
        return start < record.done <= stop


class OpenLoop(Loop):
    """At a given rate."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        super().__init__(spec, requests)
        self.idle: deque[Connection] = deque()
        self.waiting: deque[tuple[int, float]] = deque()  # for an idle connection
        self.lags: list[float] = []

    def on_idle(self, connection: Connection) -> None:
        if self.waiting:
            self._send(connection, *self.waiting.popleft())
        else:
            self.idle.append(connection)

    def _arrive(self, place: int, due: float) -> None:
        while self.idle:
            connection = self.idle.popleft()
            if connection in self.connections:
                self.lags.append(time.perf_counter() - due)
                return self._send(connection, place, due)
        self.waiting.append((place, due))

    async def run(self) -> dict[str, Any]:
        await self.open()
        self.running = True
        self.idle.extend(self.connections)
        spec, start = self.spec, time.perf_counter() + 0.01
        times = poisson(spec.rate, spec.warm_up + spec.seconds, spec.seed)
        cpu = time.process_time()
        with PreciseTimer() as timer:
            for number, due in enumerate(times):
                await timer.wait_until(start + due)
                self._arrive(number % len(self.requests), start + due)
        cpu = time.process_time() - cpu
        unsent, self.waiting = self.waiting, deque()
        await self.finish()
        now = time.perf_counter()
        for place, due in unsent:
            self.records.append(Record(place, due, now, UNSENT, b""))
        return {
            "start": start + spec.warm_up,
            "stop": start + spec.warm_up + spec.seconds,
            "cpu_us": 1e6 * cpu / max(len(times), 1),
            "lag_ms": percentiles(self.lags),
        }

    def counts(self, record: Record, start: float, stop: float) -> bool:
        return start < record.sent <= stop


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """The times at which independent clients send requests, in order."""
    rng = np.random.default_rng(seed)
    count = int(rate * seconds + 10 * (rate * seconds) ** 0.5) + 10
    times = np.cumsum(rng.exponential(1 / rate, count)) if rate else np.array([])
    return times[times < seconds].tolist()


class PreciseTimer:
    """Sleeps until a time of `time.perf_counter`, to some 0.1 ms; an event loop's own
    timers count whole milliseconds."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.Future[None] | None = None
        self._loop.add_signal_handler(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *error) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._loop.remove_signal_handler(signal.SIGALRM)

    async def wait_until(self, due: float) -> None:
        while (left := due - time.perf_counter()) > 0:
            self._alarm = self._loop.create_future()
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6))
            await self._alarm

    def _on_alarm(self) -> None:
        if self._alarm and not self._alarm.done():
            self._alarm.set_result(None)


def load_requests(path: str, folder: str) -> list[bytes]:
    """A workload's requests to a path."""
    lines = (Path(folder) / "bodies.jsonl").read_bytes().splitlines()
    return [post_request(path, body) for body in lines]


def drive(loop: Loop) -> dict[str, Any]:
    """Run a loop to its end."""

    async def run() -> dict[str, Any]:
        stalls = asyncio.create_task(loop.measure_stalls())
        try:
            return await loop.run()
        finally:
            stalls.cancel()
            loop.close()

    return uvloop.run(run())


def run(spec: Spec) -> dict[str, Any]:
    """Requests a second and latencies of the correct responses in the measured time;
    statuses and errors of all. What an open loop could not send, since no connection
    was idle, counts as having waited until the end."""
    loop = (OpenLoop if spec.rate else ClosedLoop)(
        spec, load_requests(spec.path, spec.folder)
    )
    gc.disable()
    times = drive(loop)
    reference = Reference.load(Path(spec.folder))
    correct, result = correct_records(loop.records, reference, spec.tolerance)
    correct += [record for record in loop.records if record.status == UNSENT]
    start, stop = times.pop("start"), times.pop("stop")
    counted = [record for record in correct if loop.counts(record, start, stop)]
    answered = [record for record in counted if record.status == 200]
    short = [record for record in counted if reference.short[record.place]]
    return result | {
        "rate": len(answered) / (stop - start),
        "all": latencies(counted),
        "short": latencies(short),
        "stalled_ms": 1000 * loop.stalled,
        **times,
    }


def raise_priority() -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def command(spec: Any, module: str = "bench.load_generator") -> list[str]:
    """The command of a generator."""
    return [sys.executable, "-m", module, json.dumps(asdict(spec))]


def generate(
    spec: Any, module: str = "bench.load_generator", timeout: float | None = None
) -> dict[str, Any]:
    """Run a generator in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    result = subprocess.run(
        command(spec, module), capture_output=True, text=True, cwd=ROOT, timeout=timeout
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["the load generator failed"]
        raise RuntimeError(lines[-1][-500:])
    return json.loads(result.stdout)


def main() -> None:
    raise_priority()
    print(json.dumps(run(Spec(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
