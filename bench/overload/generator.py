"""An open loop whose clients disconnect at their deadlines.

    python -m bench.overload.generator SPEC        JSON in, JSON out

Requests are due at times drawn beforehand (Poisson). A client that finds all
connections busy is not served; this and a missed deadline count against the server.
The last part of a run has another rate, and shows when the server has recovered.
"""

import asyncio
import gc
import json
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.http_connection import Connection
from bench.load_generator import load_requests, poisson, raise_priority
from bench.responses import (
    DISCONNECTED,
    Record,
    Reference,
    correct_records,
    latencies,
    percentiles,
)

SLOT = 0.001  # seconds; requests that are due within one are sent together
BUSY, LATE = -1, -2  # in place of a status
OPENING = 64  # connections that are opened at a time
WINDOW = 0.5  # seconds, of the recovery


@dataclass(frozen=True, slots=True)
class Spec:
    """A run."""

    port: int
    path: str
    folder: str  # of the workload
    rate: float
    seconds: float
    deadline: float
    send_deadline: bool = False  # in a header
    connections: int = 1000
    after_rate: float = 0
    after_seconds: float = 0
    warm_up: float = 1.0
    tolerance: float = 1e-4
    seed: int = 0


class DeadlineLoop:
    """Connections, and records of their requests."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        self.spec, self.requests = spec, requests
        self.records: list[Record] = []
        self.without_retry_after = 0  # refusals
        self.lags: list[float] = []
        self._idle: deque[Connection] = deque()
        self._pending: deque[tuple[Connection, float]] = deque()  # by due time
        self._missing = 0  # connections
        self._tasks: set[asyncio.Task] = set()
        self._ended = False

    async def run(self) -> dict[str, Any]:
        spec = self.spec
        for _ in range(spec.connections):
            with suppress(OSError):
                self._adopt(await HeadConnection.open(spec.port))
        seconds = spec.warm_up + spec.seconds
        first = poisson(spec.rate, seconds, spec.seed)
        second = poisson(spec.after_rate, spec.after_seconds, spec.seed + 1)
        start, cpu = time.perf_counter() + 0.05, time.process_time()
        await self._send_all(first, start)
        cpu = (time.process_time() - cpu) / seconds
        await self._send_all([seconds + due for due in second], start)
        await self._finish()
        return {"start": start, "cores": cpu}

    async def _send_all(self, times: list[float], start: float) -> None:
        place, size = 0, len(self.requests)
        while place < len(times):
            now = time.perf_counter()
            self._disconnect_late(now)
            while place < len(times) and start + times[place] <= now:
                due = start + times[place]
                self._send(place % size, due)
                self.lags.append(now - due)
                place += 1
            await asyncio.sleep(SLOT)

    def _send(self, place: int, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                self._replace()
                continue
            connection.place, connection.sent = place, due
            connection.send(self.requests[place])
            self._pending.append((connection, due))
            return
        self.records.append(Record(place, due, due, BUSY, b""))

    def _disconnect_late(self, now: float) -> None:
        """Disconnect clients whose deadline is over."""
        while self._pending and self._pending[0][1] + self.spec.deadline < now:
            connection, due = self._pending.popleft()
            if connection.busy and connection.sent == due:
                self._record(connection, LATE, b"")
                connection.busy = False
                connection.abort()
                self._replace()

    def _record(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        record = Record(connection.place, connection.sent, now, status, body)
        self.records.append(record)

    def _on_response(self, connection: Connection, status: int, body: bytes) -> None:
        self._record(connection, status, body)
        if status != 200:
            self.without_retry_after += b"\r\nretry-after:" not in connection.head
        self._idle.append(connection)

    def _on_lost(self, connection: Connection) -> None:
        if connection.busy:
            self._record(connection, DISCONNECTED, b"")
            connection.busy = False
            self._replace()

    def _replace(self) -> None:
        self._missing += 1
        if len(self._tasks) < OPENING and not self._ended:
            task = asyncio.get_running_loop().create_task(self._open_missing())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_missing(self) -> None:
        while self._missing and not self._ended:
            self._missing -= 1
            try:
                async with asyncio.timeout(5):
                    self._adopt(await HeadConnection.open(self.spec.port))
            except (OSError, TimeoutError):
                self._missing += 1
                await asyncio.sleep(0.05)

    def _adopt(self, connection: "HeadConnection") -> None:
        connection.on_response, connection.on_lost = self._on_response, self._on_lost
        self._idle.append(connection)

    async def _finish(self) -> None:
        """Wait for the outstanding responses, up to their deadlines."""
        end = time.perf_counter() + self.spec.deadline + 0.1
        while self._pending and time.perf_counter() < end:
            self._disconnect_late(time.perf_counter())
            while self._pending and not self._pending[0][0].busy:
                self._pending.popleft()
            await asyncio.sleep(0.01)
        self._ended = True
        for task in list(self._tasks):
            task.cancel()


class HeadConnection(Connection):
    """A connection that keeps the head of its last response."""

    head = b""

    def _parse_head(self, data: bytes) -> bool:
        complete = super()._parse_head(data)
        if complete:
            self.head = self._head.lower()
        return complete


def run(spec: Spec) -> dict[str, Any]:
    """The figures of the measured time, and of windows after it."""
    requests = load_requests(spec.path, spec.folder)
    if spec.send_deadline:
        header = f"X-Request-Timeout-Ms: {1000 * spec.deadline:.0f}\r\n".encode()
        requests = [r.replace(b"\r\n", b"\r\n" + header, 1) for r in requests]
    loop = DeadlineLoop(spec, requests)
    gc.disable()
    times = uvloop.run(loop.run())
    start = times["start"] + spec.warm_up
    stop = start + spec.seconds
    reference = Reference.load(Path(spec.folder))
    correct, result = correct_records(loop.records, reference, spec.tolerance)
    in_time = [r for r in correct if r.done - r.sent <= spec.deadline]
    good = [r for r in in_time if start < r.sent <= stop]
    sent = [r for r in loop.records if start < r.sent <= stop]
    refused = [r for r in sent if r.status not in (200, BUSY, LATE, DISCONNECTED)]
    return {
        "offered": len(sent) / spec.seconds,
        "goodput": len(good) / spec.seconds,
        "accepted_ms": latencies(good),
        "refused_ms": latencies(refused),
        "refused_without_retry_after": loop.without_retry_after,
        "statuses": dict(Counter(str(record.status) for record in sent)),
        "wrong": result["wrong"],
        "lag_ms": percentiles(loop.lags),
        "cores": times["cores"],
        "after": _windows(loop.records, correct, stop, spec),
    }


def _windows(
    records: list[Record], correct: list[Record], stop: float, spec: Spec
) -> list[dict[str, Any]]:
    """After the measured time: requests, correct responses, and their latencies."""
    windows = []
    good = {(record.place, record.sent) for record in correct}
    for place in range(int(spec.after_seconds / WINDOW)):
        start, end = stop + place * WINDOW, stop + (place + 1) * WINDOW
        own = [record for record in records if start < record.sent <= end]
        fine = [record for record in own if (record.place, record.sent) in good]
        windows.append({"sent": len(own), "good": len(fine), "ms": latencies(fine)})
    return windows


def main() -> None:
    raise_priority()
    print(json.dumps(run(Spec(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
