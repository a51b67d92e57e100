"""The open loop: `python -m bench.overload.generator SPEC`, JSON in and JSON out.

Requests are due at times drawn beforehand. Each caller hangs up at its deadline, and
whoever finds all connections busy isn't served; both count against the server. The
last part of a run is at another rate: how long until all is well again?
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.answers import Record, Reference, judge, percentiles
from bench.arrivals import poisson
from bench.http_connection import Connection, request
from bench.load import NICE

TICK = 0.001  # seconds between looks at what is due
BUSY, LATE, LOST = -1, -2, 0  # in place of a status
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
    told: bool = False  # the deadline stands in a header
    connections: int = 1000
    after_rate: float = 0
    after_seconds: float = 0
    warm: float = 1.0
    tolerance: float = 1e-4
    seed: int = 0


class Loop:
    """Connections, and what became of each request."""

    def __init__(self, spec: Spec, requests: list[bytes]):
        self.spec, self.requests = spec, requests
        self.records: list[Record] = []
        self.busy = 0
        self.refused: list[float] = []  # seconds, of those that say Retry-After
        self.unhelpful = 0  # those that don't
        self.lags: list[float] = []
        self._idle: deque[Connection] = deque()
        self._asked: deque[tuple[Connection, float]] = deque()  # by their deadline
        self._missing = 0
        self._tasks: set[asyncio.Task] = set()
        self._ended = False

    async def run(self) -> dict[str, Any]:
        spec = self.spec
        await self._open(spec.connections)
        first = poisson(spec.rate, spec.warm + spec.seconds, spec.seed)
        second = poisson(spec.after_rate, spec.after_seconds, spec.seed + 1)
        turn = spec.warm + spec.seconds
        start, used = time.perf_counter() + 0.05, time.process_time()
        await self._send(first, start)
        used = (time.process_time() - used) / turn
        await self._send([turn + at for at in second], start)
        await self._settle()
        return {"start": start, "cores": used}

    async def _send(self, times: list[float], start: float) -> None:
        place, size = 0, len(self.requests)
        while place < len(times):
            now = time.perf_counter()
            self._hang_up(now)
            while place < len(times) and start + times[place] <= now:
                due = start + times[place]
                self._arrive(place % size, due)
                self.lags.append(now - due)
                place += 1
            await asyncio.sleep(TICK)

    def _arrive(self, place: int, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                self._replace()
                continue
            connection.place, connection.begun = place, due
            connection.send(self.requests[place])
            self._asked.append((connection, due))
            return
        self.busy += 1
        self.records.append(Record(place, due, due, BUSY, b""))

    def _hang_up(self, now: float) -> None:
        """Whose deadline is over has no use for an answer."""
        while self._asked and self._asked[0][1] + self.spec.deadline < now:
            connection, due = self._asked.popleft()
            if connection.busy and connection.begun == due:
                record = Record(connection.place, due, now, LATE, b"")
                self.records.append(record)
                connection.busy = False
                connection.abort()
                self._replace()

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        begun = connection.begun
        self.records.append(Record(connection.place, begun, now, status, body))
        if status != 200:
            if b"\r\nretry-after:" in connection.head:
                self.refused.append(now - begun)
            else:
                self.unhelpful += 1
        self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        if connection.busy:
            now = time.perf_counter()
            record = Record(connection.place, connection.begun, now, LOST, b"")
            self.records.append(record)
            connection.busy = False
            self._replace()

    def _replace(self) -> None:
        self._missing += 1
        if len(self._tasks) < OPENING and not self._ended:
            task = asyncio.get_running_loop().create_task(self._again())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _again(self) -> None:
        while self._missing and not self._ended:
            self._missing -= 1
            try:
                async with asyncio.timeout(5):
                    self._adopt(await Heard.open(self.spec.port))
            except (OSError, TimeoutError):
                self._missing += 1
                await asyncio.sleep(0.05)

    async def _open(self, count: int) -> None:
        for _ in range(count):
            with suppress(OSError):
                self._adopt(await Heard.open(self.spec.port))

    def _adopt(self, connection: "Heard") -> None:
        connection.answered, connection.lost = self._answered, self._lost
        self._idle.append(connection)

    async def _settle(self) -> None:
        end = time.perf_counter() + self.spec.deadline + 0.1
        while self._asked and time.perf_counter() < end:
            self._hang_up(time.perf_counter())
            while self._asked and not self._asked[0][0].busy:
                self._asked.popleft()
            await asyncio.sleep(0.01)
        self._ended = True
        for task in list(self._tasks):
            task.cancel()


class Heard(Connection):
    """A connection that keeps the head of its last answer."""

    head = b""

    def _begin(self, data: bytes) -> bool:
        whole = super()._begin(data)
        if whole:
            self.head = self._head.lower()
        return whole


def run(spec: Spec) -> dict[str, Any]:
    """A run's figures, of the part that counts; and the windows after it."""
    lines = (Path(spec.folder) / "bodies.jsonl").read_bytes().splitlines()
    requests = [request(spec.path, body) for body in lines]
    if spec.told:
        header = f"X-Request-Timeout-Ms: {1000 * spec.deadline:.0f}\r\n".encode()
        requests = [r.replace(b"\r\n", b"\r\n" + header, 1) for r in requests]
    loop = Loop(spec, requests)
    gc.disable()
    seen = uvloop.run(loop.run())
    return _result(loop, seen)


def _result(loop: Loop, seen: dict[str, Any]) -> dict[str, Any]:
    spec = loop.spec
    start = seen["start"] + spec.warm
    stop = start + spec.seconds
    reference = Reference.load(Path(spec.folder))
    right, judged = judge(loop.records, reference, spec.tolerance)
    good = [one for one in right if one.done - one.begun <= spec.deadline]
    counted = [one for one in good if start < one.begun <= stop]
    all_ = [one for one in loop.records if start < one.begun <= stop]
    rejected = [one for one in all_ if one.status not in (200, BUSY, LATE, LOST)]
    return {
        "offered": len(all_) / spec.seconds,
        "goodput": len(counted) / spec.seconds,
        "accepted_ms": percentiles([r.done - r.begun for r in counted]),
        "rejected_ms": percentiles([r.done - r.begun for r in rejected]),
        "rejected_without_retry_after": loop.unhelpful,
        "statuses": dict(Counter(str(one.status) for one in all_)),
        "wrong": judged["wrong"],
        "lag_ms": percentiles(loop.lags),
        "cores": seen["cores"],
        "after": _windows(loop.records, right, stop, spec),
    }


def _windows(records, right, stop: float, spec: Spec) -> list[dict[str, Any]]:
    """Of the time after it: what was asked, what was good, its p99."""
    found = []
    good = {(one.place, one.begun) for one in right}
    count = int(spec.after_seconds / WINDOW)
    for place in range(count):
        a, b = stop + place * WINDOW, stop + (place + 1) * WINDOW
        own = [one for one in records if a < one.begun <= b]
        fine = [one for one in own if (one.place, one.begun) in good]
        ms = percentiles([one.done - one.begun for one in fine])
        found.append({"asked": len(own), "good": len(fine), "ms": ms})
    return found


def main() -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    print(json.dumps(run(Spec(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
