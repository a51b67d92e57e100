"""Streams that each send a frame at their own steady rate, whatever comes back.

    python -m bench.streams.generator '{"port": 8000, "streams": 500, ...}'

Prints what it found as JSON. A frame's time counts from when it was due, also where
the generator itself was late (`lag_ms` says by how much). A stream's next frame is
sent whether or not the last was answered, as a sensor does.
"""

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import uvloop

from bench.answers import percentiles
from bench.arrivals import Alarm
from bench.streams import sequences
from bench.streams.sequences import Sequences

SLOT = 0.001  # seconds; frames that are due within one are sent together
SETTLE = 5.0  # seconds for the last answers
CHECKED = 50  # of so many answers one is looked at
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Spec:
    """A run."""

    port: int
    path: str
    bundle: str
    streams: int
    rate: float  # frames a second of each
    seconds: float
    warm: float = 1.0
    seed: int = 0


class Connection(asyncio.Protocol):
    """One stream, in RFC 6455 by hand."""

    def __init__(self, run: "Run", sequence: int):
        self.run, self.sequence = run, sequence
        self.open = asyncio.get_running_loop().create_future()
        self.due: deque[float] = deque()  # of what is not answered yet
        self.sent = self.heard = 0
        self._buffer = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(
            f"GET {self.run.spec.path} HTTP/1.1\r\nHost: localhost\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(ConnectionError("hung up"))

    def send(self, due: float) -> None:
        self.due.append(due)
        self.transport.write(self.run.made.messages[self.sequence][self.sent])
        self.sent += 1

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            head, found, data = data.partition(b"\r\n\r\n")
            if not found or b" 101 " not in head.splitlines()[0]:
                self.open.set_exception(ConnectionError(repr(head[:100])))
                return
            self.open.set_result(None)
        data = self._buffer + data if self._buffer else data
        start = 0
        while len(data) - start >= 4:
            size, head = data[start + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[start + 2 : start + 4], "big"), 4
            assert size != 127, "an answer of over 64 KiB"
            if len(data) < start + head + size:
                break
            if data[start] == 0x81:  # not a ping
                self._answered(data, start + head, start + head + size)
            start += head + size
        self._buffer = data[start:]

    def _answered(self, data: bytes, start: int, stop: int) -> None:
        run = self.run
        run.took.append((self.due[0], time.perf_counter() - self.due.popleft()))
        step, self.heard = self.heard, self.heard + 1
        if (self.heard + self.sequence) % CHECKED == 0:
            run.check(self.sequence, step, data[start:stop])


class Run:
    """All streams of a run."""

    def __init__(self, spec: Spec, made: Sequences):
        self.spec, self.made = spec, made
        self.took: list[tuple[float, float]] = []  # when due, and how long it took
        self.lags: list[float] = []
        self.checked, self.wrong, self.worst = 0, 0, 0.0

    def check(self, sequence: int, step: int, body: bytes) -> None:
        self.checked += 1
        told = orjson.loads(body)
        right = self.made.answers[sequence, step]
        row = np.array(told.get("probabilities", []), np.float32).reshape(-1)
        if row.shape != right.shape or told.get("steps") != step + 1:
            self.wrong += 1
            return
        self.worst = max(self.worst, float(np.abs(row - right).max()))
        self.wrong += self.worst > TOLERANCE

    async def all(self) -> dict:
        spec, loop = self.spec, asyncio.get_running_loop()
        rng = np.random.default_rng(spec.seed)
        connections = []
        for number in range(spec.streams):
            made = Connection(self, number % len(self.made.messages))
            await loop.create_connection(lambda made=made: made, "127.0.0.1", spec.port)
            await asyncio.wait_for(made.open, 30)
            connections.append(made)
        slots = max(1, round(1 / spec.rate / SLOT))
        turns: list[list[Connection]] = [[] for _ in range(slots)]
        for made, slot in zip(
            connections, rng.integers(slots, size=spec.streams), strict=True
        ):
            turns[slot].append(made)
        begun = time.perf_counter() + 0.05
        count = int((spec.warm + spec.seconds) / SLOT)
        with Alarm() as alarm:
            for number in range(count):
                due = begun + number * SLOT
                turn = turns[number % slots]
                if turn:
                    await alarm.at(due)
                    self.lags.append(time.perf_counter() - due)
                    for made in turn:
                        made.send(due)
        end = time.perf_counter() + SETTLE
        while any(c.due for c in connections) and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        lost = sum(len(c.due) for c in connections)
        for made in connections:
            made.transport.abort()
        took = [t for due, t in self.took if due >= begun + spec.warm]
        return {
            "answered": len(took),
            "lost": lost,
            "checked": self.checked,
            "wrong": self.wrong,
            "worst": self.worst,
            "ms": percentiles(took),
            "lag_ms": percentiles(self.lags),
        }


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    steps = int((spec.warm + spec.seconds) * spec.rate) + 2
    made = sequences.make(Path(spec.bundle), steps)
    print(json.dumps(uvloop.run(Run(spec, made).all())))


if __name__ == "__main__":
    main()
