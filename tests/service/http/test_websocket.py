"""WebSocket frames in every form, clients that never read, and another ASGI server."""

import itertools
import json
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)

from service.http.websocket import WebSocket
from service.pool import spawn
from service.settings import Settings
from service.worker.engine import ENGINES
from tests.support.bundles import random_frames
from tests.support.processes import Started, serving
from tests.support.servers import (
    SECONDS,
    handshake,
    open_connection,
    running,
    wait,
)
from tests.support.streams import (
    BINARY,
    CLOSE,
    CONTINUED,
    PING,
    PONG,
    TEXT,
    CountingStream,
    RawWebSocket,
    WebSocketStream,
    counting,
    frame,
    read_frame,
    streams_open,
    text,
    wait_closed,
)

LIMIT = 2_000  # bytes of a message


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counted") / "bundles"
    with counting(folder, stream_message_bytes=LIMIT) as service:
        yield service


@pytest.fixture
def raw(counted):
    with handshake(counted.url, "model=made") as connection:
        yield RawWebSocket(connection)
    wait_closed(counted, "made")


def cut(data, places):
    """The parts of bytes that are cut at these places."""
    places = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


class TestFrames:
    def test_binary(self, counted):
        """A binary message is the same as a text."""
        with WebSocketStream(counted.url, "model=made") as stream:
            counting = CountingStream(stream, 7)
            for change in (str.encode, str, str.encode):
                message, rows = counting.message(2)
                stream.send(change(text(message)))
                counting.assert_right(stream.receive(), rows, counting.steps)
            stream.send(b"\xff")
            assert stream.receive()["error"]["status"] == 400
            stream.send(b'{"end": true}')
            assert stream.assert_ended("done")["steps"] == 6

    def test_packets(self, raw):
        """Messages in one packet are answered in order; a message that arrives byte by
        byte, when it is complete."""
        counting = CountingStream(raw, 7)
        pairs = [counting.message(length) for length in range(1, 40)]
        data = [frame(TEXT, text(message).encode()) for message, _ in pairs]
        raw.connection.sendall(b"".join(data))
        steps = 0
        for _, rows in pairs:
            steps += len(rows)
            counting.assert_right(raw.receive(), rows, steps)
        message, rows = counting.message(1)
        for byte in frame(TEXT, text(message).encode()):
            raw.connection.sendall(bytes([byte]))
        counting.assert_right(raw.receive(), rows, counting.steps)

    @given(st.data())
    def test_any_packets(self, counted, data):
        """In whatever packets they arrive, messages are answered in order: whole or in
        fragments, text or binary, with control frames anywhere."""
        counting, sent, awaited = CountingStream(None, 7), b"", []
        for _ in range(data.draw(st.integers(1, 6))):
            message, rows = counting.message(data.draw(st.integers(1, 12)))
            kind = data.draw(st.sampled_from([TEXT, BINARY]))
            places = data.draw(st.lists(st.integers(0, 200), max_size=3))
            parts = cut(text(message).encode(), places)
            for number, part in enumerate(parts):
                for _ in range(data.draw(st.integers(0, 1))):
                    payload = data.draw(st.binary(max_size=125))
                    sent += frame(data.draw(st.sampled_from([PING, PONG])), payload)
                opcode = CONTINUED if number else kind
                sent += frame(opcode, part, last=number == len(parts) - 1)
            awaited.append((rows, counting.steps))
        places = data.draw(st.lists(st.integers(0, len(sent)), max_size=30))
        with handshake(counted.url, "model=made") as connection:
            for part in cut(sent, places):
                connection.sendall(part)
            for rows, steps in awaited:
                kind = PONG
                while kind == PONG:
                    kind, payload = read_frame(connection)
                assert kind == TEXT
                counting.assert_right(json.loads(payload), rows, steps)

    def test_many_fragments(self, raw):
        """A message may have many fragments, but not any number: each costs memory, even
        if it is empty."""
        counting = CountingStream(raw, 7)
        message, rows = counting.message(3)
        *parts, last = cut(text(message).encode().ljust(1_000), range(1_000))
        data = [
            frame(CONTINUED if n else TEXT, part, last=False)
            for n, part in enumerate(parts)
        ]
        raw.connection.sendall(b"".join(data) + frame(CONTINUED, last))
        counting.assert_right(raw.receive(), rows, 3)
        raw.connection.sendall(frame(TEXT, b"{", last=False))
        with suppress(OSError):  # it is closed in the meantime
            for _ in range(10):
                raw.connection.sendall(frame(CONTINUED, b"", last=False) * 1_000)
        kind, payload = read_frame(raw.connection)
        assert (kind, payload[:2]) == (CLOSE, (1009).to_bytes(2))

    def test_control_frames(self, raw):
        """A ping is answered with its payload, and an unexpected pong is ignored."""
        for payload in (b"", b"payload", b"x" * 125):
            raw.connection.sendall(frame(PING, payload))
            assert read_frame(raw.connection) == (PONG, payload)
            CountingStream(raw, 7).ask(1, state=None)
        raw.connection.sendall(frame(PONG, b"here"))
        CountingStream(raw, 7).ask(1, state=None)

    def test_empty(self, raw):
        """An empty message is not JSON, and the stream continues."""
        counting = CountingStream(raw, 7)
        for kind in (TEXT, BINARY):
            raw.connection.sendall(frame(kind, b""))
            assert raw.receive()["error"]["status"] == 400
        counting.ask(1)

    def test_closes(self, counted, caplog):
        """A frame that breaks the protocol, or is too long, closes the WebSocket with the
        code of RFC 6455. It is no error of the service."""
        start = frame(TEXT, b"{", last=False)
        for data, code in (
            (frame(TEXT, b"x" * (LIMIT + 1)), 1009),
            (frame(TEXT, b"x" * LIMIT, last=False) + frame(CONTINUED, b"x"), 1009),
            (frame(TEXT, b"\xff\xfe"), 1007),
            (frame(TEXT, b"{}", masked=False), 1002),
            (frame(CONTINUED, b"{}"), 1002),
            (frame(3, b"{}"), 1002),  # an unknown opcode
            (b"\xc1" + frame(TEXT, b"{}")[1:], 1002),  # compressed
            (start + frame(TEXT, b"}"), 1002),
            (frame(PING, b"x", last=False), 1002),
            (frame(PING, b"x" * 126), 1002),
            (b"\x81\xff" + b"\xff" * 8, 1009),  # of immense length
            (b"\x01\xff" + b"\xff" * 8, 1009),
            (frame(CLOSE, b"\x03\xe8"), 1000),
        ):
            with handshake(counted.url, "model=made") as connection:
                raw = RawWebSocket(connection)
                CountingStream(raw, 7).ask(2)
                connection.sendall(data)
                raw.assert_closed(code)
            wait_closed(counted, "made")
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}

    def test_after_an_invalid_frame(self, counted, logged):
        """Messages behind a frame that breaks the protocol are ignored."""
        request_id = {"X-Request-ID": "invalid-frame"}
        with handshake(counted.url, "model=made", **request_id) as connection:
            message = frame(TEXT, b'{"frames": [[9]]}')
            connection.sendall(frame(3, b"{}") + message)
            RawWebSocket(connection).assert_closed(1002)
        assert logged("invalid-frame").messages == 0

    def test_sizes(self, running_server):
        """Messages and answers may have every form of length in a frame's header."""
        with WebSocketStream(running_server.url, "model=walks&top_k=1") as stream:
            stream.send({"frames": [[0.1, 1, 2]]})
            assert 40 <= len(stream.connection.recv(SECONDS).encode()) <= 125
        with WebSocketStream(running_server.url, "model=tags") as stream:
            for steps, shortest, longest in (
                (8, 126, 2**16 - 1),
                (2_000, 2**16, 2**17),
                (5_000, 2**17, 2**20),
            ):
                stream.send({"frames": [[0.1, 1, 2]] * steps, "state": None})
                answer = stream.connection.recv(SECONDS)
                assert shortest <= len(answer.encode()) <= longest
                assert json.loads(answer)["steps"] == steps
            for size in (125, 126, 127, 65_535, 65_536, 2**20):
                steps = min(size // 60, 5_000)
                message = {"frames": [[0, 1, 2]] * steps, "state": None}
                stream.send(text(message).ljust(size))
                answer = stream.receive()
                assert answer["steps"] == len(answer["labels"]) == steps


# --- clients that do not read ----------------------------------------------------

IDLE_SECONDS = 1.0
FLOOD_BYTES = 50 * 2**20
PINGS_BYTES = 30 * 2**20  # more than sockets buffer
PUSH_BYTES = 2 * 2**20  # at a time
MAX_GROWTH = 32 * 2**20  # bytes of memory


@dataclass
class ServiceProcess:
    """The service in a process of its own."""

    started: Started
    http: httpx.Client

    def metrics(self):
        return self.http.get("/metrics").text

    def resident(self):
        """Its resident memory, in bytes."""
        with open(f"/proc/{self.started.process.pid}/status") as file:
            (line,) = (line for line in file if line.startswith("VmRSS"))
        return 1024 * int(line.split()[1])


@pytest.fixture(scope="module")
def process(bundles, tmp_path_factory):
    """A process that soon ends idle streams."""
    flags = ("--bundles", bundles, "--stream-idle-seconds", IDLE_SECONDS)
    with (
        serving(tmp_path_factory.mktemp("process"), *flags) as started,
        httpx.Client(base_url=started.url, timeout=SECONDS, trust_env=False) as http,
    ):
        wait(lambda: started.answers("/readyz"), "it is ready")
        yield ServiceProcess(started, http)


class Flood:
    """A client that sends and never reads."""

    def __init__(self, connection, data):
        self.connection, self.sent = connection, 0
        self._data, self._left = data, memoryview(b"")
        connection.setblocking(False)

    def push(self):
        """Send as much as the service takes now."""
        limit = min(self.sent + PUSH_BYTES, FLOOD_BYTES)
        with suppress(OSError):  # it takes no more, or has closed the connection
            while self.sent < limit:
                self._left = self._left or memoryview(self._data)
                count = self.connection.send(self._left)
                self.sent += count
                self._left = self._left[count:]


GOOD = b'{"frames": [[1, 2, 3]]}'
LONG = text({"frames": [[0.25, -1, 2]] * 500}).encode()


def websocket_flood(url, data):
    return Flood(handshake(url, "model=tags"), data)


def ndjson_flood(url, data):
    connection = open_connection(url)
    head = "POST /stream?model=tags HTTP/1.1\r\nHost: here\r\nContent-Length: 1"
    connection.sendall(f"{head}{'0' * 10}\r\n\r\n".encode())
    return Flood(connection, data)


FLOODS = {
    "messages": [
        (websocket_flood, frame(TEXT, LONG) * 20),
        (ndjson_flood, (LONG + b"\n") * 20),
    ],
    "errors": [
        (websocket_flood, (frame(TEXT, b"x") * 90 + frame(TEXT, GOOD)) * 200),
        (ndjson_flood, (b"x\n" * 90 + GOOD + b"\n") * 500),
    ],
}


class TestNeverReads:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", FLOODS)
    def test_bounded(self, process, name):
        """A client that sends and never reads is soon not read from either, costs little
        memory, does not block other streams, and is disconnected as idle."""
        url, before = process.started.url, process.resident()
        rng = np.random.default_rng(0)
        with ExitStack() as stack, WebSocketStream(url, "model=walks") as other:
            frames = random_frames(rng, 5)
            expected = other.ask(frames)["probabilities"]
            floods = [flood(url, data) for flood, data in FLOODS[name]]
            for flood in floods:
                stack.enter_context(flood.connection)
            wait(lambda: streams_open(process, "tags") == len(floods), "all are open")
            growth, requests, deadline = 0, 0, time.monotonic() + SECONDS
            while streams_open(process, "tags"):
                assert time.monotonic() < deadline, "they are not ended"
                for flood in floods:
                    flood.push()
                other.ask(frames[:2], state=None)
                answer = other.ask(frames[2:])["probabilities"]
                np.testing.assert_allclose(answer, expected, atol=1e-5)
                growth = max(growth, process.resident() - before)
                requests += 1
        assert requests > 1
        assert growth < MAX_GROWTH
        assert all(flood.sent < FLOOD_BYTES / 2 for flood in floods)

        def ended():
            return [r["ended"] for r in process.started.records() if "messages" in r]

        wait(lambda: ended()[-1:] == ["gone"], "it is logged")
        assert ended()[-1 - len(floods) : -1] == ["unread"] * len(floods)

    @pytest.mark.slow
    def test_pings(self, counted):
        """Pings whose answers are not read are soon not read either."""
        with WebSocketStream(counted.url, "model=made") as stream:
            other, stalled = CountingStream(stream, 7), 0
            pings = frame(PING, b"x" * 125) * 1_000
            with handshake(counted.url, "model=made") as connection:
                flood = Flood(connection, pings)
                while stalled < 50 and flood.sent < PINGS_BYTES:
                    before = flood.sent
                    flood.push()
                    # After this, the service has handled all that it reads.
                    other.ask(1)
                    stalled = stalled + 1 if flood.sent == before else 0
        wait_closed(counted, "made")
        assert flood.sent < PINGS_BYTES

    @pytest.mark.slow
    def test_no_error(self, tmp_path, bundles, caplog):
        """A client that does not read is no error, and does not delay a shutdown."""
        limits = {"stream_idle_seconds": 0.3, "grace_seconds": 1}
        settings = Settings(port=0, bundles=bundles / "tags", **limits)
        with running(settings, start=spawn.thread(ENGINES)) as service:
            for start, data in FLOODS["messages"]:
                flood = start(service.url, data)
                wait(lambda: streams_open(service, "tags"), "it is open")

                def ended(flood=flood):
                    flood.push()
                    return not streams_open(service, "tags")

                wait(ended, "it is ended")
                flood.connection.close()
        levels = {record.levelname for record in caplog.records}
        assert levels <= {"DEBUG", "INFO", "WARNING"}


def test_another_server(counted, monkeypatch):
    """On another ASGI server, a WebSocket has the same answers, errors and end, and a
    disconnect is noticed."""
    run = WebSocketsSansIOProtocol.run_asgi
    monkeypatch.setattr(WebSocket, "run_asgi", run)
    with WebSocketStream(counted.url, "model=made") as stream:
        counting = CountingStream(stream, 7)
        for length in (1, 3, 2):
            counting.ask(length)
            assert stream.ask([[1, 2]])["error"]["status"] == 422
        assert stream.end()["steps"] == 6
    wait_closed(counted, "made")
    with WebSocketStream(counted.url, "model=made") as stream:
        CountingStream(stream, 7).ask(2)
    wait_closed(counted, "made")
