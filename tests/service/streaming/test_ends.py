"""How streams end: by the client, by errors, when idle or old; and their number."""

import json
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from service.streaming.handlers import MAX_CLIENT_ERRORS
from tests.support.servers import (
    chunked,
    handshake,
    open_connection,
    reset_connection,
    wait,
)
from tests.support.streams import (
    KINDS,
    TEXT,
    CountingStream,
    NdjsonStream,
    WebSocketStream,
    counting,
    frame,
    hold_engines,
    occupied,
    release_engines,
    streams_open,
    wait_closed,
    wait_entered,
)


class TestEnds:
    def test_end(self, opened, logged):
        """`"end"` returns the number of steps and a token to resume from."""
        counting = opened()
        counting.ask(5)
        last = counting.stream.end()
        assert last["steps"] == 5
        wait_closed(opened.service, "made")
        opened().resume(last, 2)
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
        before = len(engine.calls)
        with occupied(opened.service, counting, 1):
            counting.stream.send({"end": True})
            counting.stream.send({"frames": [[9]]})
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
        with occupied(service, other, 1):
            counting.stream.send(counting.message(2)[0])
            wait(lambda: service.waiting_steps() == 3, "it waits")
            counting.stream.close()
            if opened.kind is WebSocketStream:
                wait(lambda: streams_open(service, "made") == 1, "it has gone")
        wait(lambda: service.waiting_steps() == 0, "nothing waits")
        if opened.kind is WebSocketStream:
            calls = service.engines[0].calls
            assert 101 not in {first for call in calls for first in call.firsts}


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
        opened().resume(last, 1)

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
        with occupied(opened.service, other, 20):
            for _ in range(MAX_CLIENT_ERRORS + 1):
                counting.stream.send({"frames": [[1]]})
                assert counting.stream.receive()["error"]["status"] == 503
        counting.ask(1)


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
            CountingStream(stream, 7).resume(last, 2)
        with kind(idle.url, "model=made") as stream:
            last = stream.assert_ended("idle")
        assert last == {"end": "idle", "steps": 0, "state": None}

    def test_not_while_busy(self, idle, kind):
        """A stream that waits for the service is not idle, however long that takes."""
        with kind(idle.url, "model=made") as stream:
            counting = CountingStream(stream, 7)
            with (
                occupied(idle, counting, 2),
                kind(idle.url, "model=made") as other,
            ):
                other.assert_ended("idle")  # so the check has run
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
            CountingStream(stream, 7).resume(last, 1)


def test_limit(tmp_path):
    """No more streams than the limit are open. However one ends, and if it is refused,
    its place is free again."""
    with counting(tmp_path / "bundles", max_streams=2) as service:
        for kind in KINDS.values():
            with kind(service.url, "model=made") as staying:
                for leave in ("end", "disconnect", "disconnect after an error"):
                    with kind(service.url, "model=made") as stream:
                        response = service.http.post("/stream?model=made", content=b"")
                        assert response.status_code == 503
                        problem = response.json()
                        assert problem["type"] == "urn:unrolled:error:too-many-streams"
                        assert "at most 2 streams" in problem["detail"]
                        assert response.headers["retry-after"] == "10"
                        CountingStream(stream, 3).ask(1)
                        if leave == "end":
                            stream.end()
                        elif leave == "disconnect after an error":
                            stream.send("x")
                            stream.receive()
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
