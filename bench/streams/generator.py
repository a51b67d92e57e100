"""Streams that each send a frame at a steady rate, whatever the responses.

    python -m bench.streams.generator '{"port": 8000, "streams": 500, ...}'

Prints its result as JSON. A frame's latency counts from when it was due, also if the
generator itself was late (`lag_ms`). Like a sensor, a stream sends its next frame
whether the last was answered or not.

The frames are the bundle's golden ones; the expected responses are ONNX Runtime's.
"""

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import orjson
import uvloop

from bench.load_generator import PreciseTimer
from bench.responses import percentiles
from model.bundle import bundle

SLOT = 0.001  # seconds; frames that are due within one are sent together
FINISH_SECONDS = 5.0  # for the last responses
CHECKED = 50  # one response in so many is checked
TOLERANCE = 1e-4
DIFFERENT = 16  # sequences
MASK = bytes(4)  # of RFC 6455: zeros, which leave the bytes as they are


@dataclass(frozen=True, slots=True)
class Spec:
    """A run."""

    port: int
    path: str
    bundle: str
    streams: int
    rate: float  # frames a second of each
    seconds: float
    warm_up: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sequences:
    """Messages by sequence, and the expected probabilities."""

    messages: list[list[bytes]]  # WebSocket frames
    probabilities: np.ndarray  # [sequences, steps, C]

    @classmethod
    def load(cls, folder: Path, steps: int) -> "Sequences":
        """Sequences of so many steps, from different places of the golden frames."""
        opened = bundle.read(folder)
        golden = opened.golden()
        rows = zip(golden.frames, golden.lengths, strict=True)
        pool = np.concatenate([frames[:length] for frames, length in rows]).round(3)
        places = np.arange(DIFFERENT)[:, None] * 7 + np.arange(steps)
        frames = np.ascontiguousarray(pool[places % len(pool)], np.float32)
        session = onnxruntime.InferenceSession(str(folder / bundle.NETWORK))
        state = np.zeros((len(frames), opened.metadata.state_size), np.float32)
        label = opened.metadata.task == "label"
        outputs = []
        for step in range(steps):
            inputs = {
                "frames": frames[:, step : step + 1],
                "lengths": np.ones(len(frames), np.int32),
                "state": state,
            }
            probabilities, state = session.run(None, inputs)
            outputs.append(probabilities[:, 0] if label else probabilities)
        messages = [[_message(frame) for frame in sequence] for sequence in frames]
        return cls(messages, np.stack(outputs, 1))


def _message(frame: np.ndarray) -> bytes:
    """A masked text frame of RFC 6455."""
    numbers = [int(n) if n == int(n) else n for n in frame.round(3).tolist()]
    body = orjson.dumps({"frames": [numbers]})
    if len(body) < 126:
        return bytes([0x81, 0x80 | len(body)]) + MASK + body
    assert len(body) < 65_536
    return bytes([0x81, 0x80 | 126]) + len(body).to_bytes(2, "big") + MASK + body


class Stream(asyncio.Protocol):
    """One stream, in RFC 6455 by hand."""

    def __init__(self, run: "Run", sequence: int):
        self.run, self.sequence = run, sequence
        self.opened = asyncio.get_running_loop().create_future()
        self.due: deque[float] = deque()  # of unanswered frames
        self.sent = self.received = 0
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
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("disconnected"))

    def send(self, due: float) -> None:
        self.due.append(due)
        self.transport.write(self.run.sequences.messages[self.sequence][self.sent])
        self.sent += 1

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            head, complete, data = data.partition(b"\r\n\r\n")
            if not complete or b" 101 " not in head.splitlines()[0]:
                self.opened.set_exception(ConnectionError(repr(head[:100])))
                return
            self.opened.set_result(None)
        data = self._buffer + data if self._buffer else data
        start = 0
        while len(data) - start >= 4:
            size, head = data[start + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[start + 2 : start + 4], "big"), 4
            assert size != 127, "a response of over 64 KiB"
            if len(data) < start + head + size:
                break
            if data[start] == 0x81:  # not a ping
                self._on_message(data, start + head, start + head + size)
            start += head + size
        self._buffer = data[start:]

    def _on_message(self, data: bytes, start: int, stop: int) -> None:
        due = self.due.popleft()
        self.run.latencies.append((due, time.perf_counter() - due))
        step, self.received = self.received, self.received + 1
        if (self.received + self.sequence) % CHECKED == 0:
            self.run.check(self.sequence, step, data[start:stop])


class Run:
    """All streams of a run."""

    def __init__(self, spec: Spec, sequences: Sequences):
        self.spec, self.sequences = spec, sequences
        self.latencies: list[tuple[float, float]] = []  # when due, and seconds
        self.lags: list[float] = []
        self.checked, self.wrong, self.worst = 0, 0, 0.0

    def check(self, sequence: int, step: int, body: bytes) -> None:
        self.checked += 1
        message = orjson.loads(body)
        expected = self.sequences.probabilities[sequence, step]
        row = np.array(message.get("probabilities", []), np.float32).reshape(-1)
        if row.shape != expected.shape or message.get("steps") != step + 1:
            self.wrong += 1
            return
        self.worst = max(self.worst, float(np.abs(row - expected).max()))
        self.wrong += self.worst > TOLERANCE

    async def run(self) -> dict:
        spec, loop = self.spec, asyncio.get_running_loop()
        rng = np.random.default_rng(spec.seed)
        streams = []
        for number in range(spec.streams):
            stream = Stream(self, number % DIFFERENT)
            await loop.create_connection(lambda s=stream: s, "127.0.0.1", spec.port)
            await asyncio.wait_for(stream.opened, 30)
            streams.append(stream)
        slots = max(1, round(1 / spec.rate / SLOT))
        turns: list[list[Stream]] = [[] for _ in range(slots)]
        chosen = rng.integers(slots, size=spec.streams)
        for stream, slot in zip(streams, chosen, strict=True):
            turns[slot].append(stream)
        start = time.perf_counter() + 0.05
        with PreciseTimer() as timer:
            for number in range(int((spec.warm_up + spec.seconds) / SLOT)):
                due = start + number * SLOT
                if turn := turns[number % slots]:
                    await timer.wait_until(due)
                    self.lags.append(time.perf_counter() - due)
                    for stream in turn:
                        stream.send(due)
        deadline = time.perf_counter() + FINISH_SECONDS
        while any(stream.due for stream in streams) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        lost = sum(len(stream.due) for stream in streams)
        for stream in streams:
            stream.transport.abort()
        seconds = [s for due, s in self.latencies if due >= start + spec.warm_up]
        return {
            "answered": len(seconds),
            "lost": lost,
            "checked": self.checked,
            "wrong": self.wrong,
            "worst": self.worst,
            "ms": percentiles(seconds),
            "lag_ms": percentiles(self.lags),
        }


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    steps = int((spec.warm_up + spec.seconds) * spec.rate) + 2
    sequences = Sequences.load(Path(spec.bundle), steps)
    print(json.dumps(uvloop.run(Run(spec, sequences).run())))


if __name__ == "__main__":
    main()
