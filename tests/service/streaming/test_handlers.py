"""How streams end: by the client, by errors, when idle or old, and at shutdown."""

import asyncio
import concurrent.futures
import json
import logging
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from websockets.exceptions import ConnectionClosed

from service import server
from service.codecs.process import CodecProcesses
from service.settings import Settings
from service.streaming.handlers import (
    MAX_CLIENT_ERRORS,
    AsgiStreamHandler,
    SocketStreamHandler,
)
from service.streaming.stream import Stream
from service.telemetry.logs import JsonFormatter
from service.telemetry.metrics import Metrics
from tests.support.bundles import make_metadata
from tests.support.servers import SECONDS, anonymous_caller, value, wait
from tests.support.streams import (
    TEXT,
    CountingStream,
    NdjsonStream,
    RawWebSocket,
    WebSocketStream,
    chunked,
    counting,
    frame,
    handshake,
    hold_engines,
    open_connection,
    release_engines,
    reset_connection,
    streams_open,
    wait_closed,
    wait_entered,
)

CANARY = "c4n4ry"
NUMBER = 73910.4242
KINDS = {"websocket": WebSocketStream, "ndjson": NdjsonStream}


@pytest.mark.anyio
class TestPauses:
    """Errors in a row are answered with pauses, in which others are served."""

    COUNT = MAX_CLIENT_ERRORS - 1

    def stream(self):
        model = SimpleNamespace(metadata=make_metadata())
        codecs = CodecProcesses(Settings())
        return Stream(model, None, "id", anonymous_caller(), codecs, Metrics())

    async def turns(self, lines):
        """The turns of the event loop until all are answered."""
        turns = 0
        async with asyncio.timeout(SECONDS):
            while len(lines) < self.COUNT:
                await asyncio.sleep(0)
                turns += 1
        return turns

    async def test_asgi(self):
        messages, lines = [b"x"] * self.COUNT, []

        async def begin():
            pass

        async def receive():
            return messages.pop() if messages else None

        async def send(line):
            lines.append(line)

        handler = AsgiStreamHandler(self.stream(), begin, receive, send)
        task = asyncio.create_task(handler.run())
        assert await self.turns(lines) > self.COUNT / 2
        assert await task == "done"

    async def test_socket(self):
        """The messages had to wait until the client read."""
        lines = []
        socket = SimpleNamespace(
            write_paused=True,
            buffered=False,
            send_text=lines.append,
            read_more=lambda: None,
        )
        handler = SocketStreamHandler(self.stream(), socket)
        for _ in range(self.COUNT):
            handler.take(b"x")
        assert lines == []
        socket.write_paused = False
        handler.resume()
        assert await self.turns(lines) > self.COUNT / 2


class TestClientErrors:
    def test_faulty(self, opened, logged):
        """A client that sends nothing but errors is disconnected, with the reason and a
        token to resume from."""
        counting = opened()
        counting.ask(2)
        for _ in range(MAX_CLIENT_ERRORS):
            counting.stream.send("x")
        for _ in range(MAX_CLIENT_ERRORS):
            assert counting.stream.receive()["error"]["status"] == 400
        last = counting.stream.assert_ended("faulty")
        assert last["steps"] == 2
        wait_closed(opened.service, "made")
        assert logged(counting.stream).ended == "faulty"
        resumed = opened()
        resumed.steps = 2
        resumed.ask(1, state=last["state"])

    def test_in_a_row(self, opened):
        """Only errors in a row count."""
        counting = opened()
        for _ in range(2):
            for _ in range(MAX_CLIENT_ERRORS - 1):
                counting.stream.send({})
            for _ in range(MAX_CLIENT_ERRORS - 1):
                assert counting.stream.receive()["error"]["status"] == 422
            counting.ask(1)

    def test_server_errors(self, opened):
        """Errors of the service do not count."""
        counting, other = opened(), opened(first=3)
        hold_engines(opened.service)
        message, rows = other.message(20)
        other.stream.send(message)
        wait_entered(opened.service)
        for _ in range(MAX_CLIENT_ERRORS + 1):
            counting.stream.send({"frames": [[1]]})
            assert counting.stream.receive()["error"]["status"] == 503
        release_engines(opened.service)
        other.assert_right(other.stream.receive(), rows, 20)
        counting.ask(1)


class TestEnds:
    def test_end(self, opened, logged):
        """`"end"` returns the number of steps and a token to resume from."""
        counting = opened()
        counting.ask(5)
        last = counting.stream.end()
        assert last["steps"] == 5
        wait_closed(opened.service, "made")
        resumed = opened()
        resumed.steps = 5
        resumed.ask(2, state=last["state"])
        assert logged(counting.stream).ended == "done"

    def test_members(self, opened):
        """An end may have frames, which are answered first, a token, or null. Without any
        step there is no token."""
        counting = opened()
        token = counting.ask(2, return_state=True)["state"]
        counting.ask(3, end=True, return_state=True)
        assert counting.stream.assert_ended("done")["steps"] == 5
        other = opened(first=9)
        other.ask(1)
        other.stream.send({"end": True, "state": token})
        assert other.stream.assert_ended("done")["steps"] == 2
        other = opened()
        other.ask(1)
        other.stream.send({"end": True, "state": None})
        nothing = {"end": "done", "steps": 0, "state": None}
        assert other.stream.assert_ended("done") == nothing
        assert opened().stream.end() == nothing

    def test_nothing_after(self, opened):
        """Messages after the end are not computed."""
        counting, engine = opened(), opened.service.engines[0]
        hold_engines(opened.service)
        before = len(engine.calls)
        counting.stream.send(counting.message(1)[0])
        wait_entered(opened.service)
        counting.stream.send({"end": True})
        counting.stream.send({"frames": [[9]]})
        release_engines(opened.service)
        assert counting.stream.receive()["steps"] == 1
        assert counting.stream.assert_ended("done")["steps"] == 1
        assert len(engine.calls) == before + 1

    def test_websocket_closed(self, services, logged):
        """A client may close its WebSocket."""
        service = services["classify"]
        with WebSocketStream(service.url, "model=made") as stream:
            CountingStream(stream, 7).ask(1)
            stream.connection.close(1000, "bye")
            wait_closed(service, "made")
        assert logged(stream).ended == "gone"

    @pytest.mark.parametrize("line_break", [b"\n", b""], ids=["break", "no-break"])
    def test_end_of_body(self, services, line_break, logged):
        """A stream ends with its body, after the last line, which needs no line break."""
        service = services["classify"]
        with NdjsonStream(service.url, "model=made") as stream:
            counting = CountingStream(stream, 7)
            counting.ask(1)
            message, rows = counting.message(2)
            stream.send_chunk(json.dumps(message).encode() + line_break)
            stream.no_more()
            counting.assert_right(stream.receive(), rows, 3)
            assert stream.assert_ended("done")["steps"] == 3
        wait_closed(service, "made")
        assert logged(stream).ended == "done"

    def test_incomplete_line(self, services, logged):
        """If a client disconnects within a line, the line is not computed. An empty body is
        an empty stream."""
        service = services["classify"]
        with NdjsonStream(service.url, "model=made") as stream:
            CountingStream(stream, 7).ask(1)
            before = len(service.engines[0].calls)
            stream.send_chunk(b'{"frames": [[1]]')
        wait_closed(service, "made")
        assert logged(stream).ended == "gone"
        assert len(service.engines[0].calls) == before
        with NdjsonStream(service.url, "model=made") as stream:
            stream.no_more()
            nothing = {"end": "done", "steps": 0, "state": None}
            assert stream.assert_ended("done") == nothing

    @pytest.mark.parametrize("busy", [False, True], ids=["waiting", "busy"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_connection_reset(self, services, kind, busy, logged, caplog):
        """A client that vanishes, while its stream waits or computes, is no error."""
        service = services["classify"]
        request_id = f"reset-{kind}-{busy}"
        headers = {"X-Request-ID": request_id}
        message = b'{"frames": [[7]]}'
        if kind == "websocket":
            connection = handshake(service.url, "model=made", **headers)
            message = frame(TEXT, message)
        else:
            connection = open_connection(service.url)
            connection.sendall(chunked("model=made", **headers))
            message = b"12\r\n%b\n\r\n" % message
        wait(lambda: streams_open(service, "made") == 1, "it is open")
        if busy:
            hold_engines(service)
            connection.sendall(message)
            wait_entered(service)
        reset_connection(connection)
        release_engines(service)
        wait_closed(service, "made")
        assert logged(request_id).ended == "gone"
        assert {r.levelname for r in caplog.records} <= {"DEBUG", "INFO"}

    def test_dropped(self, opened):
        """If a client disconnects, its waiting message is not computed."""
        service = opened.service
        counting, other = opened(first=101), opened(first=3)
        hold_engines(service)
        message, rows = other.message(1)
        other.stream.send(message)
        wait_entered(service)
        counting.stream.send(counting.message(2)[0])

        def waiting():
            return value(service.metrics(), "unrolled_waiting_steps", model="made")

        wait(lambda: waiting() == 3, "it waits")
        counting.stream.close()
        if opened.kind is WebSocketStream:
            wait(lambda: streams_open(service, "made") == 1, "it has gone")
        release_engines(service)
        other.assert_right(other.stream.receive(), rows, 1)
        wait(lambda: waiting() == 0, "nothing waits")
        if opened.kind is WebSocketStream:
            calls = service.engines[0].calls
            assert 101 not in {first for call in calls for first in call.firsts}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A service that soon ends idle streams."""
    folder = tmp_path_factory.mktemp("idle") / "bundles"
    with counting(folder, stream_idle_seconds=0.2) as service:
        yield service


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestIdle:
    def test_ended(self, idle, kind, logged):
        """An idle stream ends with a token to resume from; one without a message, without
        a token."""
        with kind(idle.url, "model=made") as stream:
            CountingStream(stream, 7).ask(3)
            last = stream.assert_ended("idle")
        assert last["steps"] == 3
        wait_closed(idle, "made")
        assert logged(stream).ended == "idle"
        with kind(idle.url, "model=made") as stream:
            resumed = CountingStream(stream, 7)
            resumed.steps = 3
            resumed.ask(2, state=last["state"])
        with kind(idle.url, "model=made") as stream:
            last = stream.assert_ended("idle")
        assert last == {"end": "idle", "steps": 0, "state": None}

    def test_not_while_busy(self, idle, kind):
        """A stream that waits for the service is not idle, however long that takes."""
        with kind(idle.url, "model=made") as stream:
            counting = CountingStream(stream, 7)
            hold_engines(idle)
            message, rows = counting.message(2)
            stream.send(message)
            wait_entered(idle)
            with kind(idle.url, "model=made") as other:
                other.assert_ended("idle")  # so the check has run
            release_engines(idle)
            counting.assert_right(stream.receive(), rows, 2)
            counting.ask(1)

    @pytest.mark.parametrize("end", [True, False], ids=["end", "idle"])
    def test_disconnect_after_the_end(self, idle, kind, end, logged):
        """The log has the reason of the end, if the client disconnects right after it."""
        with kind(idle.url, "model=made") as stream:
            CountingStream(stream, 7).ask(1)
            if end:
                stream.send({"end": True})
            last = stream.receive()
        assert last["end"] == ("done" if end else "idle")
        assert logged(stream).ended == last["end"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_aged(tmp_path, kind, logged):
    """A stream that is never idle ends at the largest age, between two answers, with a
    token to resume from."""
    with counting(tmp_path / "bundles", stream_seconds=0.3) as service:
        with kind(service.url, "model=made") as stream:
            counted, last = CountingStream(stream, 7), {}
            while "end" not in last:
                message, rows = counted.message(1)
                with suppress(ConnectionClosed, OSError):
                    stream.send(message)
                last = stream.receive()
                if "end" not in last:
                    counted.assert_right(last, rows, counted.steps)
        assert last["end"] == "aged"
        wait_closed(service, "made")
        assert logged(stream).ended == "aged"
        with kind(service.url, "model=made") as stream:
            resumed = CountingStream(stream, 7)
            resumed.steps = last["steps"]
            resumed.ask(1, state=last["state"])


def stopping(folder, **settings):
    """A service that is stopped within the block."""
    return counting(folder / "bundles", grace_seconds=2 * SECONDS, **settings)


class TestShutdown:
    def test_ended(self, tmp_path, logged, caplog):
        """Every open stream ends with a token to resume from. A current message is
        answered first, new streams are refused, and the service exits."""
        with stopping(tmp_path) as service, ExitStack() as stack:
            streams = []
            for first, kind in enumerate([*KINDS.values()] * 2, 1):
                stream = stack.enter_context(kind(service.url, "model=made"))
                streams.append(CountingStream(stream, first))
                streams[-1].ask(first)
            silent = [
                stack.enter_context(kind(service.url, "model=made"))
                for kind in KINDS.values()
            ]
            hold_engines(service)
            current = []
            for counted in streams[2:]:
                message, rows = counted.message(2)
                counted.stream.send(message)
                current.append(rows)
            wait_entered(service)

            def waiting():
                text = service.metrics()
                return value(text, "unrolled_waiting_steps", model="made") == 4

            wait(waiting, "both are with the engine")
            service.server.stop()
            for stream in silent:
                last = stream.assert_ended("stopping")
                assert (last["steps"], last["state"]) == (0, None)
            ends = [counted.stream.assert_ended("stopping") for counted in streams[:2]]
            response = service.http.post("/stream?model=made", content=b"")
            assert response.status_code == 503
            assert response.json()["type"] == "urn:unrolled:error:stopping"
            assert response.headers["retry-after"] == "1"
            release_engines(service)
            for counted, rows in zip(streams[2:], current, strict=True):
                counted.assert_right(counted.stream.receive(), rows, counted.steps)
                ends.append(counted.stream.assert_ended("stopping"))
            assert [end["steps"] for end in ends] == [1, 2, 5, 6]
            for stream in [*silent, *(counted.stream for counted in streams)]:
                assert logged(stream).ended == "stopping"
        assert {r.levelname for r in caplog.records} <= {"DEBUG", "INFO"}
        with counting(tmp_path / "bundles") as service:
            for counted, end, kind in zip(
                streams, ends, [NdjsonStream, WebSocketStream] * 2, strict=True
            ):
                with kind(service.url, "model=made") as stream:
                    resumed = CountingStream(stream, counted.first)
                    resumed.steps = counted.steps
                    resumed.ask(3, state=end["state"])

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_long_message(self, tmp_path, monkeypatch, kind):
        """A message that takes longer than streams get to end has the time of every other
        request."""
        monkeypatch.setattr(server, "STREAM_SECONDS", 0.05)
        with stopping(tmp_path) as service, ExitStack() as stack:
            stream = stack.enter_context(kind(service.url, "model=made"))
            counted = CountingStream(stream, 7)
            hold_engines(service)
            message, rows = counted.message(2)
            stream.send(message)
            wait_entered(service)
            service.server.stop()
            port = service.server.servers[0]
            wait(lambda: not port.is_serving(), "the port is closed")
            release_engines(service)
            counted.assert_right(stream.receive(), rows, 2)
            stream.assert_ended("stopping")

    @pytest.mark.slow
    def test_without_a_pause(self, tmp_path):
        """If a client sends without a pause, every message before the end is answered, and
        none after it."""

        def pump(stream, stop):
            with suppress(OSError, ConnectionClosed):  # it has ended
                while not stop.is_set():
                    stream.send({"frames": [[7]]})

        def listen(stream, steps):
            while "end" not in (answer := stream.receive()):
                steps.append(answer["steps"])
            return answer

        stop = threading.Event()
        with (
            concurrent.futures.ThreadPoolExecutor(4) as executor,
            stopping(tmp_path) as service,
            # Raw: a client library may drop what it has received when it can't send.
            handshake(service.url, "model=made") as connection,
            NdjsonStream(service.url, "model=made") as ndjson,
        ):
            streams, steps = (RawWebSocket(connection), ndjson), ([], [])
            for stream in streams:
                executor.submit(pump, stream, stop)
            try:
                ends = [
                    executor.submit(listen, *pair)
                    for pair in zip(streams, steps, strict=True)
                ]
                wait(lambda: min(map(len, steps)) > 100, "both are busy")
                service.server.stop()
                for end, answered in zip(ends, steps, strict=True):
                    last = end.result(SECONDS)
                    assert last["end"] == "stopping"
                    assert answered == list(range(1, last["steps"] + 1))
            finally:
                stop.set()

    @pytest.mark.slow
    def test_silent_clients(self, tmp_path, caplog):
        """Clients that neither close nor read do not delay the shutdown."""
        caplog.set_level(logging.ERROR)
        with stopping(tmp_path) as service:
            connections = [handshake(service.url, "model=made") for _ in range(3)]
            streams = [NdjsonStream(service.url, "model=made") for _ in range(3)]
            wait(lambda: streams_open(service, "made") == 6, "all are open")
        for connection in [*connections, *streams]:
            connection.close()
        assert caplog.records == []


def end(stream):
    stream.end()


def disconnect(stream):
    stream.close()


def disconnect_after_an_error(stream):
    stream.send("x")
    stream.receive()
    stream.close()


def test_limit(tmp_path):
    """No more streams than the limit are open. However one ends, and if it is refused,
    its place is free again."""
    with counting(tmp_path / "bundles", max_streams=2) as service:
        for kind in KINDS.values():
            with kind(service.url, "model=made") as staying:
                for leave in (end, disconnect, disconnect_after_an_error):
                    with kind(service.url, "model=made") as stream:
                        response = service.http.post("/stream?model=made", content=b"")
                        assert response.status_code == 503
                        problem = response.json()
                        assert problem["type"] == "urn:unrolled:error:too-many-streams"
                        assert "at most 2 streams" in problem["detail"]
                        assert response.headers["retry-after"] == "10"
                        CountingStream(stream, 3).ask(1)
                        leave(stream)
                    wait(lambda: streams_open(service, "made") == 1, "it is free")
                    response = service.http.post("/stream?model=nobody")
                    assert response.status_code == 404
                CountingStream(staying, 5).ask(1)
            wait_closed(service, "made")
    with counting(tmp_path / "bundles", max_streams=0) as service:
        response = service.http.post("/stream?model=made", content=b"")
        assert response.status_code == 503
        body = {"sequences": [[[7]]]}
        assert service.http.post("/classify", json=body).status_code == 200


def test_metrics(opened):
    """Metrics have the open streams, the time of answered messages, the errors, and each
    stream as one request."""
    service, kind = opened.service, opened.kind
    assert streams_open(service, "made") == 0
    before = service.metrics()
    counted, other = opened(), opened()
    assert streams_open(service, "made") == 2
    for _ in range(3):
        counted.ask(2)
    for message in ("x", "y", {}, {"frames": [[1]] * 21}):
        counted.stream.send(message)
        counted.stream.receive()
    other.stream.end()
    wait(lambda: streams_open(service, "made") == 1, "the other is closed")
    counted.stream.close()
    wait_closed(service, "made")

    def grown(name, **labels):
        now = value(service.metrics(), name, **labels)
        return now - value(before, name, **labels)

    status = str(kind.status)
    requests = {"method": kind.method, "route": "/stream", "status": status}
    name = "http_server_request_duration_seconds_count"
    wait(lambda: grown(name, **requests) == 2, "both are counted")
    seconds = "unrolled_stream_message_seconds"
    # The end is a message too, which may be counted or not.
    assert grown(f"{seconds}_count", model="made") in (3, 4)
    assert 0 < grown(f"{seconds}_sum", model="made") < SECONDS
    refused = "unrolled_refused_requests_total"
    assert grown(refused, kind="invalid-json") == 2
    assert grown(refused, kind="invalid-request") == 1
    assert grown(refused, kind="too-large") == 1
    useful = {"model": "made", "kind": "useful"}
    wait(lambda: grown("unrolled_steps_total", **useful) == 6, "all are counted")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_log(running_server, kind, logged, caplog):
    """A stream is one log record, with its model, messages, steps, bytes and end. No frame
    and no token is logged."""
    with kind(running_server.url, "model=walks") as stream:
        token = stream.ask([[1, 2, NUMBER]] * 4, return_state=True)["state"]
        stream.send({"frames": [[1, 2, NUMBER, 4]], CANARY: 1})
        stream.receive()
        answer = stream.ask([[1, 2, NUMBER]], state=token)
        last = stream.end()
    entry = json.loads(JsonFormatter().format(logged(stream)))
    assert entry["message"] == "request"
    assert entry["level"] == "info"
    assert entry["method"] == kind.method
    assert entry["route"] == "/stream"
    assert entry["status"] == kind.status
    assert entry["request_id"] == stream.headers["x-request-id"]
    assert entry["duration_ms"] > 0
    assert entry["model"] == "walks"
    assert entry["messages"] == 4
    assert entry["steps"] == 5
    assert entry["ended"] == "done"
    assert entry["bytes_out"] > len(json.dumps([answer, last]))
    text = "\n".join(map(JsonFormatter().format, caplog.records))
    for secret in (str(NUMBER), CANARY, token, last["state"], token[:40]):
        assert secret not in text
    for secret in (CANARY, token[:40]):
        assert secret not in running_server.metrics()
