"""Test clients for streams: over both transports, and with raw frames."""

import http.client
import json
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.sync.client import connect

from service.settings import Settings
from tests.support.scheduler import FakeEngine, expected, frames, write_bundle
from tests.support.servers import (
    SECONDS,
    Running,
    chunked,
    open_connection,
    running,
    value,
    wait,
)

KEY = "a key of tests: nobody's secret"
CODES = {"done": 1000, "idle": 1000, "faulty": 1008, "stopping": 1012, "retired": 1012}
TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def text(message):
    """A message as it is sent: a dictionary as JSON, anything else unchanged."""
    return message if isinstance(message, bytes | str) else json.dumps(message)


class StreamConnection:
    """A stream from the client's side: what does not depend on its transport."""

    def ask(self, frames, **members):
        """The answer to frames [t, F]."""
        self.send({"frames": np.asarray(frames).tolist()} | members)
        return self.receive()

    def end(self):
        """End the stream, and return its last line."""
        self.send({"end": True})
        return self.assert_ended("done")

    def assert_ended(self, reason):
        """The next line is the last one; return it."""
        last = self.receive()
        assert set(last) == {"end", "steps", "state"}
        assert last["end"] == reason
        self.assert_closed(reason)
        return last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class WebSocketStream(StreamConnection):
    """A stream over a WebSocket."""

    method, status = "GET", 101

    def __init__(self, url, query="", **options):
        self._stack = ExitStack()
        address = f"{url.replace('http', 'ws', 1)}/stream?{query}"
        options = {"compression": None, "proxy": None, "close_timeout": 1} | options
        opened = connect(address, open_timeout=SECONDS, max_size=None, **options)
        self.connection = self._stack.enter_context(opened)
        self.headers = self.connection.response.headers

    def send(self, message):
        self.connection.send(text(message))

    def receive(self):
        return json.loads(self.connection.recv(SECONDS))

    def assert_closed(self, reason):
        """The service has closed the stream properly, for this reason."""
        with pytest.raises(ConnectionClosed) as caught:
            self.connection.recv(SECONDS)
        closed = caught.value.rcvd
        assert closed is not None
        assert (closed.code, closed.reason) == (CODES[reason], reason)

    def close(self):
        """Disconnect without ending the stream."""
        self._stack.close()


class NdjsonStream(StreamConnection):
    """A stream of NDJSON, in a chunked body."""

    method, status = "POST", 200

    def __init__(self, url, query="", **headers):
        self.connection = open_connection(url)
        self.connection.sendall(chunked(query, **headers))
        self._ended = False
        self._response = http.client.HTTPResponse(self.connection)
        self._response.begin()
        assert self._response.status == 200, self._response.read()
        self.headers = self._response.headers

    def send_chunk(self, part):
        """Send a chunk of the body."""
        self.connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))

    def send(self, message):
        message = text(message)
        line = message if isinstance(message, bytes) else message.encode()
        self.send_chunk(line + b"\n")

    def no_more(self):
        """Send the end of the body."""
        self.connection.sendall(b"0\r\n\r\n")
        self._ended = True

    def receive(self):
        line = self._response.readline()
        assert line.endswith(b"\n"), "the answer ended"
        return json.loads(line)

    def assert_closed(self, reason):
        if not self._ended:  # otherwise the service waits a moment for it
            self.no_more()
        assert self._response.readline() == b""  # raises where a chunk is missing

    def close(self):
        self._response.close()
        self.connection.close()


KINDS = {"websocket": WebSocketStream, "ndjson": NdjsonStream}


# --- what is answered ------------------------------------------------------------


def numbers(answer):
    """The probabilities of an answer."""
    return np.array(answer["probabilities"], np.float32)


def streams_open(service, *models):
    """The number of open streams of these models."""
    exposition = service.metrics()
    return sum(
        value(exposition, "unrolled_open_streams", model=model) for model in models
    )


def wait_closed(service, *models):
    """Return when no stream of these models is open."""
    wait(lambda: not streams_open(service, *models), "all streams are closed")


class CountingStream:
    """A stream to the fake engine, which knows the right answer to each message."""

    def __init__(self, stream, first, task="classify"):
        self.stream, self.first, self.task = stream, first, task
        self.steps = 0

    def message(self, length, **members):
        """The next frames as a message, and the expected probabilities."""
        next_frames = frames(self.steps + length, self.first)[self.steps :]
        self.steps += length
        return {"frames": next_frames.tolist()} | members, self.rows(length)

    def rows(self, length):
        """The probabilities after each of the last steps, [length, 3]."""
        return expected(self.steps, self.first)[self.steps - length :]

    def ask(self, length, **members):
        """Send the next frames, check the answer, and return it."""
        message, rows = self.message(length, **members)
        self.stream.send(message)
        return self.assert_right(self.stream.receive(), rows, self.steps)

    def resume(self, last, length):
        """Continue from the end of another stream, and check the answer."""
        self.steps = last["steps"]
        return self.ask(length, state=last["state"])

    def assert_right(self, answer, rows, steps):
        assert answer.get("steps") == steps, answer
        right = rows if self.task == "label" else rows[-1]
        np.testing.assert_array_equal(answer["probabilities"], right)
        return answer


@dataclass(frozen=True)
class CountingService(Running):
    """A server with fake engines, which can be held, or made to fail."""

    task: str
    engines: list[FakeEngine]

    def waiting_steps(self):
        return value(self.metrics(), "unrolled_waiting_steps", model="made")


@contextmanager
def counting(folder, task="classify", **settings):
    """The service with the model `made` and a fake engine, until the block ends."""
    if not folder.exists():
        write_bundle(folder / "made" / "1", task)
    engines = []

    def load(bundle, settings):
        engines.append(FakeEngine(task))
        return engines[-1]

    defaults = {"port": 0, "bundles": folder, "workers": 1, "state_key": KEY}
    try:
        with running(Settings(**defaults | settings), load_engine=load) as server:
            yield CountingService(
                server.url, server.app, server.server, server.http, task, engines
            )
    finally:
        for engine in engines:
            engine.gate.set()


def hold_engines(service):
    """Hold all engines: what is sent now is computed after `release_engines`."""
    for engine in service.engines:
        while engine.entered.acquire(blocking=False):
            pass
        engine.closed()


def wait_entered(service):
    """Return when an engine has begun a call."""
    assert service.engines[0].entered.acquire(timeout=SECONDS)


def release_engines(service):
    for engine in service.engines:
        engine.gate.set()


@contextmanager
def occupied(service, counting, length):
    """The engines are held in a call with the next frames of a stream, whose answer is
    checked after the block."""
    hold_engines(service)
    message, rows = counting.message(length)
    counting.stream.send(message)
    wait_entered(service)
    try:
        yield
    finally:
        release_engines(service)
    counting.assert_right(counting.stream.receive(), rows, counting.steps)


# --- WebSocket frames -----------------------------------------------------------


class AnyFrame(Frame):
    """A WebSocket frame, which may be invalid."""

    def check(self):
        pass


def frame(kind, payload, *, last=True, masked=True):
    """A client's WebSocket frame, as bytes."""
    return AnyFrame(kind, payload, last).serialize(mask=masked)


def read_frame(connection):
    """The kind and the payload of the service's next frame."""

    def exactly(size):
        data = b""
        while len(data) < size:
            part = connection.recv(size - len(data))
            assert part, "the connection was closed"
            data += part
        return data

    kind, size = exactly(2)
    if size == 126:
        (size,) = struct.unpack("!H", exactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", exactly(8))
    return kind & 0x0F, exactly(size)


class RawWebSocket:
    """A WebSocket whose frames are sent and read one by one."""

    def __init__(self, connection):
        self.connection = connection

    def send(self, message):
        self.connection.sendall(frame(TEXT, text(message).encode()))

    def receive(self):
        kind, payload = read_frame(self.connection)
        assert kind == TEXT
        return json.loads(payload)

    def assert_closed(self, code):
        """The service closes the WebSocket with this code, and the connection."""
        kind, payload = read_frame(self.connection)
        assert kind == CLOSE, payload
        assert int.from_bytes(payload[:2]) == code
        assert self.connection.recv(1) == b""
