"""Streams on the wire: what is refused before one begins, lines and WebSocket messages
in every form, and callers that send and never read."""

import http.client
import itertools
import json
import logging
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import anyio
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)

import tests.support.streams as fixtures
from service.errors import TooLarge
from service.http.middleware import REQUEST_ID
from service.http.ndjson import NdjsonReader
from service.http.websocket import WebSocket
from service.pool import spawn
from service.settings import Settings
from service.worker.engine import ENGINES
from tests.support.bundles import random_frames
from tests.support.processes import Started, serving
from tests.support.scheduler import FakeEngine, write_bundle
from tests.support.servers import SECONDS, anonymous_caller, running, send, value, wait
from tests.support.streams import (
    BINARY,
    CLOSE,
    CONTINUED,
    PING,
    PONG,
    TEXT,
    TRANSPORTS,
    CountingStream,
    RawWebSocket,
    WebSocketStream,
    chunked,
    counting,
    frame,
    handshake,
    open_connection,
    read_frame,
    streams_open,
    text,
    upgrade,
    wait_closed,
)

CANARY = "c4n4ry"
PROBLEM = "application/problem+json"
LIMIT = 2_000  # of a message, in bytes
WAYS = [pytest.param("websocket", id="websocket"), pytest.param("lines", id="lines")]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The service with an engine that counts, and short messages."""
    folder = tmp_path_factory.mktemp("counted") / "bundles"
    with counting(folder, stream_message_bytes=LIMIT) as made:
        yield made


# --- before a stream begins ------------------------------------------------------


def ask_for(way, url, target, **headers):
    """Status, headers and body of what is answered to who asks for a stream."""
    if way == "websocket":
        return send(url, upgrade(target, **headers))
    given = {"Host": "here", "Content-Length": "0"} | headers
    head = "".join(f"{name}: {words}\r\n" for name, words in given.items())
    return send(url, f"POST {target} HTTP/1.1\r\n{head}\r\n".encode())


def assert_refused(answer, status, slug):
    """It is a refusal of that kind, without what was asked; gives the problem."""
    given, headers, body = answer
    assert given == status, body
    assert headers["content-type"] == PROBLEM
    assert headers["content-length"] == str(len(body))
    problem = json.loads(body)
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["status"] == status
    assert problem["request_id"] == headers["x-request-id"]
    assert CANARY not in body.decode()
    return problem


def wrong(id, query, *paths):
    return pytest.param(query, paths, id=id)


QUERIES = [
    wrong("nothing", "", "model"),
    wrong("empty", "model=", "model"),
    wrong("other-case", "Model=walks", "query", "model"),
    wrong("unknown", f"model=walks&{CANARY}=1", "query"),
    wrong("unknown-empty", f"model=walks&{CANARY}", "query"),
    wrong("state", "model=walks&state=x", "query"),
    wrong("top-k-0", "model=walks&top_k=0", "top_k"),
    wrong("top-k-minus-1", "model=walks&top_k=-1", "top_k"),
    wrong("top-k-plus-1", "model=walks&top_k=%2B1", "top_k"),
    wrong("top-k-1.5", "model=walks&top_k=1.5", "top_k"),
    wrong("top-k-word", f"model=walks&top_k={CANARY}", "top_k"),
    wrong("top-k-empty", "model=walks&top_k=", "top_k"),
    wrong("top-k-blank", "model=walks&top_k=1%0A", "top_k"),
    wrong("top-k-wide", "model=walks&top_k=%EF%BC%91", "top_k"),
    wrong("top-k-5000-digits", f"model=walks&top_k={'9' * 5000}", "top_k"),
    wrong("all", f"{CANARY}=1&top_k=x", "query", "top_k", "model"),
]


@pytest.mark.parametrize("way", WAYS)
class TestRefused:
    @pytest.mark.parametrize(("query", "paths"), QUERIES)
    def test_query(self, server, way, query, paths):
        """A query that says anything else than a model and top_k is refused; all
        that is wrong is named."""
        answer = ask_for(way, server, f"/stream?{query}")
        problem = assert_refused(answer, 422, "invalid-request")
        assert tuple(fault["path"] for fault in problem["errors"]) == paths
        if "model" in paths:
            assert "there are: tags, walks" in problem["detail"]

    @pytest.mark.parametrize(
        "name", [CANARY, "WALKS", "walks%00", "..%2Fwalks", "walks/1", "w%E4lks", "%"]
    )
    def test_unknown_model(self, server, way, name):
        """A model that isn't there is, and those that are there are named."""
        answer = ask_for(way, server, f"/stream?model={name}")
        problem = assert_refused(answer, 404, "unknown-model")
        assert "both, tags, walks" in problem["detail"]

    def test_both_directions(self, server, way):
        """So is one that needs its sequences whole; those that could be meant, and no
        others, are named."""
        answer = ask_for(way, server, "/stream?model=both")
        problem = assert_refused(answer, 422, "not-streamable")
        assert "can be streamed: tags" in problem["detail"]
        assert "walks" not in problem["detail"]

    def test_last_counts(self, running_server, way):
        """Of a parameter that is given twice the last one counts."""
        kind = {"websocket": WebSocketStream, "lines": fixtures.NdjsonStream}[way]
        query = f"top_k=3&model={CANARY}&model=walks&top_k=1"
        with kind(running_server.url, query) as talk:
            assert len(talk.ask([[1, 2, 3]])["top"]) == 1

    def test_counted(self, running_server, way):
        """A refusal is counted by its kind, and as a request with its status."""
        method = {"websocket": "GET", "lines": "POST"}[way]
        requests = {"method": method, "route": "/stream", "status": "404"}
        refused, name = (
            "unrolled_refused_requests_total",
            "http_server_request_duration_seconds_count",
        )

        def figures():
            exposition = running_server.metrics()
            return (
                value(exposition, refused, kind="unknown-model"),
                value(exposition, name, **requests),
            )

        before = figures()
        for _ in range(3):
            ask_for(way, running_server.url, "/stream?model=nobody")
        wait(lambda: figures() == (before[0] + 3, before[1] + 3), "all are counted")

    def test_own_id(self, server, way):
        """The caller's id is used in a refusal, too."""
        own = {"X-Request-ID": "mine"}
        _, headers, body = ask_for(way, server, "/stream?model=nobody", **own)
        assert headers["x-request-id"] == "mine"
        assert json.loads(body)["request_id"] == "mine"

    def test_no_error(self, server, way, caplog):
        """What is refused is no error of the service."""
        for query in ("", "model=nobody", "model=both", "model=walks&x=1"):
            ask_for(way, server, f"/stream?{query}")
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}

    def test_not_ready(self, tmp_path, way):
        """While models are loading a stream is refused as not ready, and later it is
        not."""
        write_bundle(tmp_path / "made" / "1")
        loads = threading.Event()

        def load(found, settings):
            assert loads.wait(SECONDS)
            return FakeEngine()

        own = Settings(port=0, bundles=tmp_path, workers=1)
        with running(own, ready=False, load_engine=load) as service:
            try:
                answer = ask_for(way, service.url, "/stream?model=made")
                assert_refused(answer, 503, "not-ready")
                assert answer[1]["retry-after"] == "1"
            finally:
                loads.set()
            wait(lambda: service.registry.ready, "it is ready")
            kind = {"websocket": WebSocketStream, "lines": fixtures.NdjsonStream}[way]
            with kind(service.url, "model=made") as talk:
                CountingStream(talk, 3).ask(2)


HANDSHAKES = [
    pytest.param({"Sec-WebSocket-Version": "12"}, id="version"),
    pytest.param({"Sec-WebSocket-Version": CANARY}, id="no-version"),
    pytest.param({"Sec-WebSocket-Key": CANARY}, id="key"),
    pytest.param({"Sec-WebSocket-Key": "AAAA"}, id="short-key"),
]


class TestPaths:
    @pytest.mark.direct
    @pytest.mark.parametrize("headers", HANDSHAKES)
    def test_bad_handshake(self, server, headers, caplog):
        """What is no handshake of a WebSocket is refused as such, as every other
        mistake of a caller."""
        status, given, body = send(server, upgrade("/stream?model=walks", **headers))
        assert status == 400
        assert given["content-type"] == PROBLEM
        assert json.loads(body)["type"] == "urn:unrolled:error:bad-handshake"
        assert CANARY not in body.decode()
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}

    @pytest.mark.direct
    def test_posted_handshake(self, server):
        """So is one with another method."""
        request = upgrade("/stream?model=walks").replace(b"GET", b"POST", 1)
        status, _, body = send(server, request)
        assert status == 400
        assert json.loads(body)["type"] == "urn:unrolled:error:bad-handshake"

    def test_handshake_behind_a_request(self, counted):
        """A handshake that is sent behind lines that have no answer yet harms them
        not, and leaves no stream behind."""
        stream = CountingStream(None, 7)
        message, rows = stream.message(2)
        line = text(message).encode() + b"\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line)
        with open_connection(counted.url) as connection:
            connection.sendall(
                chunked("model=made") + body + upgrade("/stream?model=made")
            )
            response = http.client.HTTPResponse(connection)
            response.begin()
            stream.assert_right(json.loads(response.readline()), rows, 2)
            assert json.loads(response.readline())["end"] == "done"
            assert response.readline() == b""
            assert connection.recv(1) == b""
        wait_closed(counted, "made")

    @pytest.mark.parametrize("path", ["/", "/stream/", "/classify", "/docs", "/Stream"])
    def test_web_socket_elsewhere(self, running_server, path):
        """A WebSocket at another path is refused as such, and nothing of the path is
        told or counted."""
        answer = send(running_server.url, upgrade(f"{path}?model=walks&{CANARY}"))
        assert_refused(answer, 404, "not-found")
        labels = {"method": "GET", "route": "unmatched", "status": "404"}
        name = "http_server_request_duration_seconds_count"
        wait(lambda: value(running_server.metrics(), name, **labels), "it is counted")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
    def test_another_method(self, running_server, method):
        """A plain request of another method is told which there is."""
        response = running_server.http.request(method, "/stream?model=walks")
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert response.headers["content-type"] == PROBLEM

    @pytest.mark.parametrize(
        ("name", "words", "accept"),
        [
            ("Content-Type", "text/plain", "Accept"),
            ("Content-Type", "application/xml", "Accept"),
            ("Content-Type", "application/x-ndjsons", "Accept"),
            ("Content-Type", f"application/{CANARY}", "Accept"),
            ("Content-Encoding", "br", "Accept-Encoding"),
            ("Content-Encoding", "identity, gzip", "Accept-Encoding"),
            ("Content-Encoding", CANARY, "Accept-Encoding"),
        ],
    )
    def test_another_kind(self, server, name, words, accept):
        """A body of another kind, or compressed in another way, is refused with what
        is taken."""
        target = "/stream?model=walks"
        answer = ask_for("lines", server, target, **{name: words})
        assert_refused(answer, 415, "unsupported-media-type")
        assert accept.lower() in answer[1]

    @pytest.mark.parametrize(
        "words",
        [
            "application/x-ndjson",
            "application/jsonl",
            "application/json",
            "Application/X-NDJSON; charset=utf-8",
            "application/x-www-form-urlencoded",
            "",
        ],
    )
    def test_kinds(self, server, words):
        """JSON lines are taken under each of their names, and where nothing is
        said."""
        headers = {"Content-Type": words} if words else {}
        with fixtures.NdjsonStream(server, "model=walks", **headers) as talk:
            assert talk.ask([[1, 2, 3]])["steps"] == 1

    def test_answer(self, server):
        """The answer's lines are marked as such, to be kept by no cache and no proxy;
        the connection ends with them."""
        own = {"X-Request-ID": "my-stream"}
        with fixtures.NdjsonStream(server, "model=walks", **own) as talk:
            assert talk.headers["content-type"] == "application/x-ndjson"
            assert talk.headers["cache-control"] == "no-store"
            assert talk.headers["x-accel-buffering"] == "no"
            assert talk.headers["connection"] == "close"
            assert talk.headers["x-request-id"] == "my-stream"
            talk.end()
            assert talk.connection.recv(1) == b""

    @pytest.mark.direct
    def test_handshake(self, server):
        """A WebSocket's handshake has the stream's id; compression, which costs more
        time than it saves, is not agreed on."""
        with WebSocketStream(server, "model=walks", compression="deflate") as talk:
            assert REQUEST_ID.fullmatch(talk.headers["x-request-id"])
            assert "sec-websocket-extensions" not in talk.headers
            assert talk.ask([[1, 2, 3]])["steps"] == 1


# --- lines -----------------------------------------------------------------------


def cut(data, places):
    """The parts of bytes that are cut at these places."""
    places = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


class TestLines:
    """Lines of a body, without a body."""

    def read(self, parts, limit=100):
        """What `NdjsonReader` gives for a body in these parts, in place of errors None."""

        async def everything():
            left = [
                {"type": "http.request", "body": part, "more_body": True}
                for part in parts
            ] + [{"type": "http.request"}]

            async def receive():
                return left.pop(0)

            lines = NdjsonReader(receive, limit, anonymous_caller().reservation)
            found = []
            while (line := await lines.next_line()) is not None:
                found.append(None if isinstance(line, TooLarge) else line)
            assert await lines.next_line() is None
            return found

        return anyio.run(everything)

    @settings(max_examples=400)
    @given(
        st.lists(st.sampled_from([b"a", b"{}", b"\n", b"\r\n", b" ", b"abcdefgh"])),
        st.lists(st.integers(0, 60)),
        st.integers(1, 12),
    )
    def test_parts(self, pieces, places, limit):
        """In whatever parts a body comes, its lines are those that it has: empty ones
        left out, an error in place of each over the limit, the last one with or
        without a line break."""
        body = b"".join(pieces)
        expected = [
            line if len(line) <= limit else None
            for line in body.split(b"\n")
            if line.strip() or len(line) > limit
        ]
        assert self.read(cut(body, places), limit) == expected

    @pytest.mark.parametrize(
        ("body", "lines"),
        [
            pytest.param(b"", [], id="nothing"),
            pytest.param(b"\n\r\n \n", [], id="empty-lines"),
            pytest.param(b"ab", [b"ab"], id="no-break"),
            pytest.param(b"ab\n", [b"ab"], id="break"),
            pytest.param(b"ab\r\ncd", [b"ab\r", b"cd"], id="carriage-return"),
            pytest.param(b"a\rb", [b"a\rb"], id="old-break"),
            pytest.param(b"\nab\n\n\ncd\n", [b"ab", b"cd"], id="between"),
            pytest.param(b"12345\n123456\n1", [b"12345", None, b"1"], id="limit"),
            pytest.param(b"123456", [None], id="long-end"),
            pytest.param(b"1" * 1000 + b"\n" + b"2" * 1000, [None] * 2, id="long-ones"),
        ],
    )
    def test_lines(self, body, lines):
        """What counts as a line."""
        assert self.read([body], 5) == lines
        assert self.read([body[n : n + 1] for n in range(len(body))], 5) == lines

    def test_goes(self):
        """A caller that goes before the end of its body, within a line or between
        two, has gone."""

        async def all_of(*messages):
            left = [*messages, {"type": "http.disconnect"}]

            async def receive():
                return left.pop(0)

            lines = NdjsonReader(receive, 100, anonymous_caller().reservation)
            while await lines.next_line() is not None:
                pass

        part = {"type": "http.request", "body": b"ab\nc", "more_body": True}
        for messages in ([], [part], [part, part | {"body": b"\n"}]):
            with pytest.raises(ClientDisconnect):
                anyio.run(all_of, *messages)

    def test_keeps_nothing(self):
        """A line over the limit is forgotten while it comes, however long."""
        size, count = 2**20, 100
        peak = 0

        async def everything():
            nonlocal peak
            left = count

            async def receive():
                nonlocal left, peak
                left -= 1
                peak = max(peak, len(lines._buffer))
                body = b"x" * size
                return {"type": "http.request", "body": body, "more_body": left > 0}

            lines = NdjsonReader(receive, 10, anonymous_caller().reservation)
            assert isinstance(await lines.next_line(), TooLarge)
            assert await lines.next_line() is None

        anyio.run(everything)
        assert peak <= size


class TestFlow:
    def test_line_by_line(self, counted):
        """A line is answered while the body is still being sent, before the next is
        there."""
        with fixtures.NdjsonStream(counted.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            for length in (1, 3, 2):
                stream.ask(length)
            assert talk.end()["steps"] == 6

    def test_told_length(self, counted):
        """So it is where the length of the body was said beforehand."""
        stream = CountingStream(None, 7)
        pairs = [stream.message(length) for length in (1, 2, 3)]
        lines = [text(message).encode() + b"\n" for message, _ in pairs]
        with open_connection(counted.url) as connection:
            length = sum(map(len, lines))
            head = f"POST /stream?model=made HTTP/1.1\r\nHost: here\r\nContent-Length: {length}"
            connection.sendall(head.encode() + b"\r\n\r\n")
            response = http.client.HTTPResponse(connection)
            response.begin()
            steps = 0
            for line, (_, rows) in zip(lines, pairs, strict=True):
                connection.sendall(line)
                steps += len(rows)
                stream.assert_right(json.loads(response.readline()), rows, steps)
            last = json.loads(response.readline())
            assert (last["end"], last["steps"]) == ("done", 6)
            assert response.readline() == b""

    def test_plain_client(self, counted):
        """A client that sends its whole body before it reads gets every answer."""
        stream = CountingStream(None, 7)
        pairs = [stream.message(length) for length in (2, 1, 5)]
        body = "\n".join(text(message) for message, _ in pairs)
        response = counted.http.post("/stream?model=made", content=body)
        assert response.status_code == 200
        *answers, last = [json.loads(line) for line in response.text.splitlines()]
        steps = 0
        for answer, (_, rows) in zip(answers, pairs, strict=True):
            steps += len(rows)
            stream.assert_right(answer, rows, steps)
        assert (last["end"], last["steps"]) == ("done", 8)

    @settings(max_examples=40)
    @given(
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8),
        breaks=st.lists(
            st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n", b" \r\n\r\n"]),
            min_size=8,
            max_size=8,
        ),
        places=st.lists(st.integers(0, 400), max_size=12),
        last_break=st.booleans(),
    )
    def test_any_parts(self, counted, lengths, breaks, places, last_break):
        """Wherever the chunks of a body are cut, in the midst of lines or with many in
        one, and however its lines end, each is answered in order."""
        stream, body, awaited = CountingStream(None, 7), b"", []
        for length, line_break in zip(lengths, breaks, strict=False):
            message, rows = stream.message(length)
            body += text(message).encode() + line_break
            awaited.append((rows, stream.steps))
        body = body if last_break else body.rstrip()
        with fixtures.NdjsonStream(counted.url, "model=made") as talk:
            for part in cut(body, places):
                talk.send_chunk(part)
            talk.no_more()
            for rows, steps in awaited:
                stream.assert_right(talk.receive(), rows, steps)
            assert talk.assert_ended("done")["steps"] == stream.steps

    @pytest.mark.parametrize("size", [LIMIT + 1, 100_000, 3_000_000])
    def test_too_long(self, counted, size):
        """A line over the limit is refused, however long it is, and the next one is
        answered."""
        with fixtures.NdjsonStream(counted.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            stream.ask(2)
            message, rows = stream.message(1)
            long = b"x" * size
            for part in cut(long, range(0, size, 65_536)):
                talk.send_chunk(part)
            talk.send_chunk(b"\n" + text(message).encode() + b"\n")
            told = talk.receive()
            assert told["steps"] == 2
            assert told["error"]["status"] == 413
            assert told["error"]["detail"] == f"at most {LIMIT} bytes in a message"
            stream.assert_right(talk.receive(), rows, 3)
            assert talk.end()["steps"] == 3

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_as_long_as_allowed(self, counted, kind):
        """A message as long as allowed is answered."""
        with kind(counted.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            message, rows = stream.message(5)
            talk.send(text(message).ljust(LIMIT))
            stream.assert_right(talk.receive(), rows, 5)


# --- WebSocket messages ----------------------------------------------------------


@pytest.fixture
def plain(counted):
    with handshake(counted.url, "model=made") as connection:
        yield RawWebSocket(connection)
    wait_closed(counted, "made")


class TestFrames:
    def test_binary(self, counted):
        """A binary message is the same as a text."""
        with WebSocketStream(counted.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            for change in (str.encode, str, str.encode):
                message, rows = stream.message(2)
                talk.send(change(text(message)))
                stream.assert_right(talk.receive(), rows, stream.steps)
            talk.send(b"\xff")
            assert talk.receive()["error"]["status"] == 400
            talk.send(b'{"end": true}')
            assert talk.assert_ended("done")["steps"] == 6

    @settings(max_examples=25)
    @given(
        st.lists(st.integers(0, 150), max_size=6),
        st.lists(st.booleans(), min_size=8, max_size=8),
        st.sampled_from([TEXT, BINARY]),
    )
    def test_fragments(self, counted, places, pings, kind):
        """A message in any fragments, with pings between them, is one message."""
        with handshake(counted.url, "model=made") as connection:
            stream = CountingStream(RawWebSocket(connection), 7)
            for _ in range(2):
                message, rows = stream.message(6)
                parts = cut(text(message).encode(), places)
                data, pongs = b"", 0
                for number, part in enumerate(parts):
                    opcode = CONTINUED if number else kind
                    last = number == len(parts) - 1
                    data += frame(opcode, part, last=last)
                    if pings[number] and not last:
                        data += frame(PING, b"%d" % number)
                        pongs += 1
                connection.sendall(data)
                for _ in range(pongs):
                    assert read_frame(connection)[0] == PONG
                stream.assert_right(stream.talk.receive(), rows, stream.steps)

    def test_at_once(self, plain):
        """Messages that come in one packet are answered in order."""
        stream = CountingStream(plain, 7)
        pairs = [stream.message(length) for length in range(1, 40)]
        data = [frame(TEXT, text(message).encode()) for message, _ in pairs]
        plain.connection.sendall(b"".join(data))
        steps = 0
        for _, rows in pairs:
            steps += len(rows)
            stream.assert_right(plain.receive(), rows, steps)

    def test_byte_by_byte(self, plain):
        """A message that comes byte by byte is answered when it is whole."""
        stream = CountingStream(plain, 7)
        message, rows = stream.message(1)
        for byte in frame(TEXT, text(message).encode()):
            plain.connection.sendall(bytes([byte]))
        stream.assert_right(plain.receive(), rows, 1)

    def test_many_fragments(self, plain):
        """A message in many fragments is one, in very many it is refused: each costs
        memory, also an empty one; in one packet or in several."""
        stream = CountingStream(plain, 7)
        message, rows = stream.message(3)
        *parts, last = cut(text(message).encode().ljust(1_000), range(1_000))
        data = [
            frame(CONTINUED if n else TEXT, one, last=False)
            for n, one in enumerate(parts)
        ]
        plain.connection.sendall(b"".join(data) + frame(CONTINUED, last))
        stream.assert_right(plain.receive(), rows, 3)
        plain.connection.sendall(frame(TEXT, b"{", last=False))
        with suppress(OSError):  # it is closed meanwhile
            for _ in range(10):
                plain.connection.sendall(frame(CONTINUED, b"", last=False) * 1_000)
        kind, payload = read_frame(plain.connection)
        assert (kind, payload[:2]) == (CLOSE, (1009).to_bytes(2))

    def test_ping(self, plain):
        """A ping is answered with its own words, before any message and after."""
        for words in (b"", b"words", b"x" * 125):
            plain.connection.sendall(frame(PING, words))
            assert read_frame(plain.connection) == (PONG, words)
            CountingStream(plain, 7).ask(1, state=None)

    def test_pong(self, plain):
        """A pong that nobody asked for is left as it is."""
        plain.connection.sendall(frame(PONG, b"here"))
        CountingStream(plain, 7).ask(1)

    def test_empty(self, plain):
        """An empty message is no JSON, and the stream goes on."""
        stream = CountingStream(plain, 7)
        for kind in (TEXT, BINARY):
            plain.connection.sendall(frame(kind, b""))
            assert plain.receive()["error"]["status"] == 400
        stream.ask(1)

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            pytest.param(frame(TEXT, b"x" * (LIMIT + 1)), 1009, id="too-long"),
            pytest.param(
                frame(TEXT, b"x" * LIMIT, last=False) + frame(CONTINUED, b"x"),
                1009,
                id="too-long-in-fragments",
            ),
            pytest.param(
                frame(TEXT, b"\xff\xfe"),
                1007,
                id="no-text",
            ),
            pytest.param(frame(TEXT, b"{}", masked=False), 1002, id="unmasked"),
            pytest.param(frame(CONTINUED, b"{}"), 1002, id="nothing-to-continue"),
            pytest.param(frame(3, b"{}"), 1002, id="unknown-kind"),
            pytest.param(b"\xc1" + frame(TEXT, b"{}")[1:], 1002, id="compressed"),
            pytest.param(
                frame(TEXT, b"{", last=False) + frame(TEXT, b"}"), 1002, id="within"
            ),
            pytest.param(frame(PING, b"x", last=False), 1002, id="ping-in-fragments"),
            pytest.param(frame(PING, b"x" * 126), 1002, id="long-ping"),
            pytest.param(b"\x81\xff" + b"\xff" * 8, 1009, id="immense"),
            pytest.param(b"\x01\xff" + b"\xff" * 8, 1009, id="immense-fragment"),
            pytest.param(frame(CLOSE, b"\x03\xe8"), 1000, id="closed-by-caller"),
        ],
    )
    def test_closes(self, counted, plain, data, code):
        """What breaks the protocol, or is too long for it, closes the WebSocket with
        the code that RFC 6455 has for that; the stream has ended."""
        CountingStream(plain, 7).ask(2)
        plain.connection.sendall(data)
        plain.assert_closed(code)
        wait_closed(counted, "made")

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(frame(TEXT, b"\xff\xfe"), id="no-text"),
            pytest.param(frame(TEXT, b"x" * (LIMIT + 1)), id="too-long"),
            pytest.param(frame(3, b"{}"), id="unknown-kind"),
        ],
    )
    def test_no_error(self, plain, data, caplog):
        """A caller that breaks the protocol is no error of the service."""
        plain.connection.sendall(data)
        assert read_frame(plain.connection)[0] in (CLOSE, TEXT)
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}

    def test_after_the_break(self, counted, caplog):
        """What comes in one packet with a frame that breaks the protocol, after it,
        is not taken for a message."""
        caplog.set_level(logging.INFO, "service.request")
        own = "after-the-break"
        query = "model=made"
        with handshake(counted.url, query, **{"X-Request-ID": own}) as connection:
            message = frame(TEXT, b'{"frames": [[9]]}')
            connection.sendall(frame(3, b"{}") + message)
            RawWebSocket(connection).assert_closed(1002)

            def records():
                found = (r for r in caplog.records if r.name == "service.request")
                return [record for record in found if record.request_id == own]

            wait(records, "it is logged")
        assert [record.messages for record in records()] == [0]

    @settings(max_examples=40)
    @given(st.data())
    def test_any_packets(self, counted, data):
        """In whatever packets they come, messages in whole or in fragments, text or
        binary, with control frames anywhere, are answered in order."""
        stream, sent, awaited = CountingStream(None, 7), b"", []
        for _ in range(data.draw(st.integers(1, 6))):
            message, rows = stream.message(data.draw(st.integers(1, 12)))
            kind = data.draw(st.sampled_from([TEXT, BINARY]))
            places = data.draw(st.lists(st.integers(0, 200), max_size=3))
            parts = cut(text(message).encode(), places)
            for number, part in enumerate(parts):
                for _ in range(data.draw(st.integers(0, 1))):
                    words = data.draw(st.binary(max_size=125))
                    sent += frame(data.draw(st.sampled_from([PING, PONG])), words)
                opcode = CONTINUED if number else kind
                sent += frame(opcode, part, last=number == len(parts) - 1)
            awaited.append((rows, stream.steps))
        places = data.draw(st.lists(st.integers(0, len(sent)), max_size=30))
        with handshake(counted.url, "model=made") as connection:
            for part in cut(sent, places):
                connection.sendall(part)
            for rows, steps in awaited:
                kind = PONG
                while kind == PONG:
                    kind, payload = read_frame(connection)
                assert kind == TEXT
                stream.assert_right(json.loads(payload), rows, steps)

    @pytest.mark.parametrize(
        ("steps", "shortest", "longest"),
        [
            (1, 40, 125),
            (8, 126, 2**16 - 1),
            (2_000, 2**16, 2**17),
            (5_000, 2**17, 2**20),
        ],
    )
    def test_sizes_of_answers(self, running_server, steps, shortest, longest):
        """Answers of every form of length in a frame's head."""
        query = "model=walks&top_k=1" if steps == 1 else "model=tags"
        with WebSocketStream(running_server.url, query) as talk:
            talk.send({"frames": [[0.1, 1, 2]] * steps})
            answer = talk.connection.recv(SECONDS)
            assert shortest <= len(answer.encode()) <= longest
            assert json.loads(answer)["steps"] == steps

    @pytest.mark.parametrize("size", [125, 126, 127, 65_535, 65_536, 2**20])
    def test_sizes(self, running_server, size):
        """Messages of every form of length."""
        with WebSocketStream(running_server.url, "model=tags") as talk:
            steps = min(size // 50, 5_000)
            talk.send(text({"frames": [[0, 1, 2]] * steps}).ljust(size))
            answer = talk.receive()
            assert answer["steps"] == steps
            assert len(answer["labels"]) == steps


# --- callers that do not read ----------------------------------------------------

IDLE_SECONDS = 1.0
FLOOD_BYTES = 50 * 2**20
PINGS_BYTES = 30 * 2**20  # more than sockets buffer
PUSH_BYTES = 2 * 2**20  # at a time
MOST_BYTES = 32 * 2**20  # that the service may grow by


@dataclass
class Apart:
    """The service in a process of its own."""

    started: Started
    http: httpx.Client

    def metrics(self):
        return self.http.get("/metrics").text

    def resident(self):
        """The memory that it has resident, in bytes."""
        with open(f"/proc/{self.started.process.pid}/status") as file:
            (line,) = (line for line in file if line.startswith("VmRSS"))
        return 1024 * int(line.split()[1])


@pytest.fixture(scope="module")
def apart(bundles, tmp_path_factory):
    """One that waits for nobody for long."""
    flags = ("--bundles", bundles, "--stream-idle-seconds", IDLE_SECONDS)
    with serving(tmp_path_factory.mktemp("apart"), *flags) as started:
        wait(lambda: started.answers("/readyz"), "it is ready")
        with httpx.Client(
            base_url=started.url, timeout=SECONDS, trust_env=False
        ) as http:
            yield Apart(started, http)


class Flood:
    """A caller that sends and never reads."""

    def __init__(self, connection, data):
        self.connection, self.sent = connection, 0
        self._data, self._left = data, memoryview(b"")
        connection.setblocking(False)

    def push(self):
        """Send what is taken, and some of what isn't; whether there is more."""
        until = min(self.sent + PUSH_BYTES, FLOOD_BYTES)
        with suppress(OSError):  # no more is taken, or it was cut off
            while self.sent < until:
                self._left = self._left or memoryview(self._data)
                taken = self.connection.send(self._left)
                self.sent += taken
                self._left = self._left[taken:]


GOOD = b'{"frames": [[1, 2, 3]]}'
LONG = text({"frames": [[0.25, -1, 2]] * 500}).encode()


def to_web_socket(url, data):
    return Flood(handshake(url, "model=tags"), data)


def to_lines(url, data):
    connection = open_connection(url)
    head = "POST /stream?model=tags HTTP/1.1\r\nHost: here\r\nContent-Length: 1"
    connection.sendall(f"{head}{'0' * 10}\r\n\r\n".encode())
    return Flood(connection, data)


FLOODS = {
    "messages": [
        (to_web_socket, frame(TEXT, LONG) * 20),
        (to_lines, (LONG + b"\n") * 20),
    ],
    "errors": [
        (to_web_socket, (frame(TEXT, b"x") * 90 + frame(TEXT, GOOD)) * 200),
        (to_lines, (b"x\n" * 90 + GOOD + b"\n") * 500),
    ],
}


class TestNeverReads:
    @pytest.mark.parametrize("name", FLOODS)
    def test_bounded(self, apart, name):
        """A caller that sends and never reads is soon not read from either, costs
        little memory, holds up no other stream, and is ended as an idle one."""
        url, before = apart.started.url, apart.resident()
        rng = np.random.default_rng(0)
        with ExitStack() as stack, WebSocketStream(url, "model=walks") as other:
            whole = random_frames(rng, 5)
            expected = other.ask(whole)["probabilities"]
            floods = [make(url, data) for make, data in FLOODS[name]]
            for flood in floods:
                stack.enter_context(flood.connection)
            wait(lambda: streams_open(apart, "tags") == len(floods), "all are open")
            grown, asked, end = 0, 0, time.monotonic() + SECONDS
            while streams_open(apart, "tags"):
                assert time.monotonic() < end, "it is never ended"
                for flood in floods:
                    flood.push()
                other.ask(whole[:2], state=None)
                answer = other.ask(whole[2:])["probabilities"]
                np.testing.assert_allclose(answer, expected, atol=1e-5)
                grown, asked = max(grown, apart.resident() - before), asked + 1
        assert asked > 1
        assert grown < MOST_BYTES
        assert all(flood.sent < FLOOD_BYTES / 2 for flood in floods)

        def ended():
            return [r["ended"] for r in apart.started.records() if "messages" in r]

        wait(lambda: ended()[-1:] == ["gone"], "it is logged")
        assert ended()[-1 - len(floods) : -1] == ["unread"] * len(floods)

    def test_pings(self, counted):
        """Pings whose answers nobody reads are soon not read either."""
        with WebSocketStream(counted.url, "model=made") as talk:
            other, still = CountingStream(talk, 7), 0
            pings = frame(PING, b"x" * 125) * 1_000
            with handshake(counted.url, "model=made") as connection:
                flood = Flood(connection, pings)
                while still < 50 and flood.sent < PINGS_BYTES:
                    before = flood.sent
                    flood.push()
                    # The service has turned to all that it reads, after this.
                    other.ask(1)
                    still = still + 1 if flood.sent == before else 0
        wait_closed(counted, "made")
        assert flood.sent < PINGS_BYTES

    @pytest.mark.parametrize("make", [to_web_socket, to_lines])
    def test_no_error(self, tmp_path, bundles, make, caplog):
        """A caller that does not read is no error of the service, and holds up no
        stop."""
        data = frame(TEXT, LONG) if make is to_web_socket else LONG + b"\n"
        limits = {"stream_idle_seconds": 0.3, "grace_seconds": 1}
        own = Settings(port=0, bundles=bundles / "tags", **limits)
        with running(own, start=spawn.thread(ENGINES)) as service:
            flood = make(service.url, data * 20)
            wait(lambda: streams_open(service, "tags"), "it is open")

            def ended():
                flood.push()
                return not streams_open(service, "tags")

            wait(ended, "it is ended")
            flood.connection.close()
        assert {record.levelname for record in caplog.records} <= {
            "DEBUG",
            "INFO",
            "WARNING",
        }


class TestAnotherServer:
    @pytest.fixture(autouse=True)
    def _plain_asgi(self, monkeypatch):
        """As on a server that has no way past ASGI."""
        run = WebSocketsSansIOProtocol.run_asgi
        monkeypatch.setattr(WebSocket, "run_asgi", run)

    def test_answers(self, counted):
        """There a WebSocket is answered through ASGI, with the same lines: rightly, in
        spite of faults, up to the end that the caller asks for."""
        with WebSocketStream(counted.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            for length in (1, 3, 2):
                stream.ask(length)
                assert talk.ask([[1, 2]])["error"]["status"] == 422
            assert talk.end()["steps"] == 6
        wait_closed(counted, "made")

    def test_vanishes(self, counted):
        """Who goes there without a word is noticed."""
        with WebSocketStream(counted.url, "model=made") as talk:
            CountingStream(talk, 7).ask(2)
        wait_closed(counted, "made")
