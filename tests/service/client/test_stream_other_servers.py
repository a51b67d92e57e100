"""The clients' streams to servers other than the service."""

import json
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import serve

from service.client import ConnectionLost, InvalidAnswer, RequestError
from service.client import stream as client_stream
from tests.support.servers import SECONDS


@contextmanager
def web_socket_server(handler, **options):
    """The address of a server for WebSockets, and the headers that it got."""
    heads = []

    def record(connection, request):
        heads.append(request.headers)
        return process(connection, request) if process else None

    process = options.pop("process", None)
    options |= {"process_request": record, "compression": None, "close_timeout": 1}
    with serve(handler, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", heads
        finally:
            server.shutdown()
            thread.join(SECONDS)


def replies(*messages):
    """A handler that answers the first message with these, and no other message."""

    def handler(connection):
        for place, _ in enumerate(connection):
            for message in () if place else messages:
                connection.send(message)

    return handler


def refusing(status, body=b"", **headers):
    """A response to each handshake."""

    def process(connection, request):
        lines = {name.replace("_", "-"): text for name, text in headers.items()}
        lines["Content-Length"] = str(len(body))
        return Response(status, "Said", Headers(lines), body)

    return process


def object_with(**members):
    return json.dumps(members)


def error_with(**members):
    return object_with(error=members, steps=0)


GOOD = {"steps": 1, "label": "a", "probability": 1.0, "probabilities": [1.0]}
DIGITS = "9" * 5000
INVALID_ANSWERS = [
    *("", "<h1>Welcome</h1>", b"\xff\xfe", "[" * 100_000, DIGITS, "[]", "5", "{}"),
    object_with(label="a", probability=1, probabilities=[1]),
    object_with(**GOOD | {"steps": "1"}),
    object_with(**GOOD | {"label": 5}),
    object_with(**GOOD | {"probabilities": "no"}),
    object_with(**GOOD | {"state": 5}),
    object_with(steps=1, labels=["a"], probabilities=[1]),
    object_with(end="done"),
    object_with(end="done", steps=1, state=5),
    object_with(error="no"),
    error_with(),
    error_with(status="422", title="x"),
    error_with(status=10**9, title="x"),
]


def answer_once(listening, raw):
    """Accept a connection, read a request, and answer with these bytes."""
    with listening.accept()[0] as connection, connection.makefile("rb") as file:
        for line in file:
            if line == b"\r\n":
                break
        connection.sendall(raw)


def refused(kind, url, expected, **options):
    """A stream whose first message raises this exception, and the exception."""
    stream = kind.stream(kind.client(url, **options), "made")
    with pytest.raises(expected) as caught:
        stream.send([[1]])
    return stream, caught.value


class TestOtherServers:
    """Messages and handshakes of servers other than the service."""

    @pytest.mark.slow
    def test_invalid_answer(self, kind):
        """A message that is not as documented raises InvalidAnswer with a detail."""
        for message in INVALID_ANSWERS:
            with web_socket_server(replies(message)) as (url, _):
                stream, error = refused(kind, url, InvalidAnswer)
            assert error.status == 101
            assert error.detail
            assert (stream.steps, stream.state) == (0, None)

    def test_after_invalid_answer(self, kind):
        """The next message after it is not taken for another answer: the stream
        reconnects."""
        with web_socket_server(replies("no", object_with(**GOOD))) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            for connections in (1, 2):
                with pytest.raises(InvalidAnswer):
                    stream.send([[1]])
                assert len(heads) == connections

    def test_problem(self, kind):
        """Members of problem details that are not as documented are ignored."""
        problem = {"status": 422, "title": 5, "detail": [], "errors": [{}, 5]}
        handler = replies(error_with(**problem, retry_after=DIGITS))
        with web_socket_server(handler) as (url, _):
            _, error = refused(kind, url, RequestError)
        assert not isinstance(error, InvalidAnswer)
        assert (error.status, error.detail) == (422, "")
        assert error.title
        assert (error.errors, error.retry_after) == ([], None)

    def test_handshake(self, kind):
        """A refused handshake raises RequestError, whatever its body."""
        for status, body in (
            (304, b""),
            (404, b"no"),
            (404, b"[" * 100_000),
            (503, b'{"errors": [{}], "title": 5}'),
        ):
            process = refusing(status, body, Retry_After=DIGITS)
            with web_socket_server(replies(), process=process) as (url, _):
                _, error = refused(kind, url, RequestError)
            assert (error.status, error.title) == (status, "Said")
            assert (error.errors, error.retry_after) == ([], None)

    def test_no_stream(self, kind):
        """A handshake with a successful response raises InvalidAnswer."""
        for status in (200, 204):
            process = refusing(status)
            with web_socket_server(replies(), process=process) as (url, _):
                _, error = refused(kind, url, InvalidAnswer)
            assert error.status == status

    def test_no_handshake(self, kind):
        """A server that speaks HTTP but no WebSocket raises InvalidAnswer, any other
        ConnectionLost."""
        for raw, error in (
            (b"HTTP/1.1 101 Said\r\nUpgrade: none\r\n\r\n", InvalidAnswer),
            (b"HTTP/1.1 101 Said\r\nUpgrade: websocket\r\n\r\n", InvalidAnswer),
            (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionLost),
            (b"", ConnectionLost),
        ):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                thread = threading.Thread(target=answer_once, args=(listening, raw))
                thread.start()
                url = f"http://127.0.0.1:{listening.getsockname()[1]}"
                refused(kind, url, error, timeout=5)
                thread.join(SECONDS)

    def test_invalid_frame(self, kind):
        """Text that is not UTF-8, or an invalid frame, raises InvalidAnswer."""
        for frame in (b"\x81\x01\xff", b"\x8f\x00"):

            def handler(connection, frame=frame):
                connection.recv()
                connection.socket.sendall(frame)
                with suppress(ConnectionClosed):
                    connection.recv(SECONDS)

            with web_socket_server(handler) as (url, heads):
                _, error = refused(kind, url, InvalidAnswer)
                assert error.status == 101
                assert len(heads) == 1

    def test_cut(self, kind):
        """A connection that breaks with each attempt raises ConnectionLost."""

        def handler(connection):
            connection.recv()
            connection.socket.shutdown(socket.SHUT_RDWR)

        with web_socket_server(handler) as (url, heads):
            _, error = refused(kind, url, ConnectionLost)
            assert "close frame" in str(error)
            assert len(heads) == len(client_stream.DELAYS)


class TestRedirects:
    def test_to_another_origin(self, kind):
        """A redirect is not followed: no other server gets the caller's headers, and the
        error has the location."""
        with web_socket_server(replies()) as (other, other_heads):
            location = other.replace("http", "ws", 1) + "/stream"
            for status in (301, 302, 303, 307, 308):
                process = refusing(status, Location=location)
                with web_socket_server(replies(), process=process) as (url, heads):
                    headers = {"X-API-Key": "s3cret"}
                    _, error = refused(kind, url, RequestError, headers=headers)
                assert [head["X-API-Key"] for head in heads] == ["s3cret"]
                assert error.status == status
                assert location in str(error)
            assert other_heads == []

    def test_other_locations(self, kind):
        """Nor is a redirect to the same server, or with an invalid location."""
        for location in ("/there", "http://[::1", "mailto:x"):
            process = refusing(307, Location=location)
            with web_socket_server(replies(), process=process) as (url, heads):
                _, error = refused(kind, url, RequestError)
                assert len(heads) == 1
            assert error.status == 307
            assert location in error.detail
