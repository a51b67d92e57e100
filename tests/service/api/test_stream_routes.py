"""`/stream`: requests that are refused, headers, and NDJSON in both directions."""

import http.client
import itertools
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.middleware import REQUEST_ID
from service.settings import Settings
from tests.support.scheduler import FakeEngine, write_bundle
from tests.support.servers import (
    SECONDS,
    chunked,
    head_of,
    open_connection,
    running,
    send,
    upgrade,
    value,
    wait,
)
from tests.support.streams import (
    KINDS,
    CountingStream,
    NdjsonStream,
    WebSocketStream,
    counting,
    text,
    wait_closed,
)

CANARY = "c4n4ry"  # input that no response may contain
PROBLEM = "application/problem+json"
LIMIT = 2_000  # bytes of a message


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counted") / "bundles"
    with counting(folder, stream_message_bytes=LIMIT) as service:
        yield service


def ask_for(transport, url, target, **headers):
    """Status, headers and body of the response to the request for a stream."""
    if transport == "websocket":
        return send(url, upgrade(target, **headers))
    headers = {"Host": "here", "Content-Length": "0"} | headers
    return send(url, head_of(f"POST {target} HTTP/1.1", headers))


def assert_refused(response, status, slug):
    """The response is this error, without any input; return the problem."""
    code, headers, body = response
    assert code == status, body
    assert headers["content-type"] == PROBLEM
    assert headers["content-length"] == str(len(body))
    problem = json.loads(body)
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["status"] == status
    assert problem["request_id"] == headers["x-request-id"]
    assert CANARY not in body.decode()
    return problem


QUERIES = [
    ("", ["model"]),
    ("model=", ["model"]),
    ("Model=walks", ["query", "model"]),
    (f"model=walks&{CANARY}=1", ["query"]),
    (f"model=walks&{CANARY}", ["query"]),
    ("model=walks&state=x", ["query"]),
    ("model=walks&top_k=0", ["top_k"]),
    ("model=walks&top_k=-1", ["top_k"]),
    ("model=walks&top_k=%2B1", ["top_k"]),
    ("model=walks&top_k=1.5", ["top_k"]),
    (f"model=walks&top_k={CANARY}", ["top_k"]),
    ("model=walks&top_k=", ["top_k"]),
    ("model=walks&top_k=1%0A", ["top_k"]),
    ("model=walks&top_k=%EF%BC%91", ["top_k"]),  # a wide digit
    (f"model=walks&top_k={'9' * 5000}", ["top_k"]),
    (f"{CANARY}=1&top_k=x", ["query", "top_k", "model"]),
]
UNKNOWN = [CANARY, "WALKS", "walks%00", "..%2Fwalks", "walks/1", "w%E4lks", "%"]


@pytest.mark.parametrize("transport", KINDS)
class TestRefused:
    def test_query(self, server, transport, caplog):
        """A query may only have a model and top_k; every other parameter, and each
        invalid one, is named. Of a repeated parameter the last counts."""
        for query, paths in QUERIES:
            response = ask_for(transport, server, f"/stream?{query}")
            problem = assert_refused(response, 422, "invalid-request")
            assert [error["path"] for error in problem["errors"]] == paths, query
            if "model" in paths:
                assert "there are: tags, walks" in problem["detail"]
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}
        query = f"top_k=3&model={CANARY}&model=walks&top_k=1"
        with KINDS[transport](server, query) as stream:
            assert len(stream.ask([[1, 2, 3]])["top"]) == 1

    def test_model(self, server, transport):
        """An unknown model is 404, a bidirectional one 422; the error names the models
        that would do."""
        for name in UNKNOWN:
            response = ask_for(transport, server, f"/stream?model={name}")
            problem = assert_refused(response, 404, "unknown-model")
            assert "both, tags, walks" in problem["detail"]
        response = ask_for(transport, server, "/stream?model=both")
        problem = assert_refused(response, 422, "not-streamable")
        assert "can be streamed: tags" in problem["detail"]
        assert "walks" not in problem["detail"]

    def test_counted(self, running_server, transport):
        """An error is counted by kind and by status, and has the client's request id."""
        method = {"websocket": "GET", "ndjson": "POST"}[transport]
        labels = {"method": method, "route": "/stream", "status": "404"}
        refused, requests = (
            "unrolled_refused_requests_total",
            "http_server_request_duration_seconds_count",
        )

        def counts():
            exposition = running_server.metrics()
            return (
                value(exposition, refused, kind="unknown-model"),
                value(exposition, requests, **labels),
            )

        before = counts()
        for _ in range(3):
            _, headers, body = ask_for(
                transport,
                running_server.url,
                "/stream?model=nobody",
                **{"X-Request-ID": "mine"},
            )
            assert headers["x-request-id"] == "mine"
            assert json.loads(body)["request_id"] == "mine"
        wait(lambda: counts() == (before[0] + 3, before[1] + 3), "all are counted")

    @pytest.mark.slow
    def test_not_ready(self, tmp_path, transport):
        """While the models are loading, a stream gets 503 and `Retry-After`."""
        write_bundle(tmp_path / "made" / "1")
        loaded = threading.Event()

        def load(bundle, settings):
            assert loaded.wait(SECONDS)
            return FakeEngine()

        settings = Settings(port=0, bundles=tmp_path, workers=1)
        with running(settings, ready=False, load_engine=load) as service:
            try:
                response = ask_for(transport, service.url, "/stream?model=made")
                assert_refused(response, 503, "not-ready")
                assert response[1]["retry-after"] == "1"
            finally:
                loaded.set()
            wait(lambda: service.registry.ready, "it is ready")
            with KINDS[transport](service.url, "model=made") as stream:
                CountingStream(stream, 3).ask(2)


class TestRequests:
    @pytest.mark.direct
    def test_bad_handshake(self, server, caplog):
        """An invalid WebSocket handshake is an error of the client's."""
        handshakes = [
            upgrade("/stream?model=walks", **headers)
            for headers in (
                {"Sec-WebSocket-Version": "12"},
                {"Sec-WebSocket-Version": CANARY},
                {"Sec-WebSocket-Key": CANARY},
                {"Sec-WebSocket-Key": "AAAA"},
            )
        ]
        posted = upgrade("/stream?model=walks").replace(b"GET", b"POST", 1)
        for request in [*handshakes, posted]:
            status, headers, body = send(server, request)
            assert status == 400
            assert headers["content-type"] == PROBLEM
            assert json.loads(body)["type"] == "urn:unrolled:error:bad-handshake"
            assert CANARY not in body.decode()
        assert {record.levelname for record in caplog.records} <= {"DEBUG", "INFO"}

    def test_handshake_behind_a_request(self, counted):
        """A handshake that is pipelined behind an unanswered stream does not harm it, and
        opens no stream."""
        counting = CountingStream(None, 7)
        message, rows = counting.message(2)
        line = text(message).encode() + b"\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line)
        with open_connection(counted.url) as connection:
            handshake = upgrade("/stream?model=made")
            connection.sendall(chunked("model=made") + body + handshake)
            response = http.client.HTTPResponse(connection)
            response.begin()
            counting.assert_right(json.loads(response.readline()), rows, 2)
            assert json.loads(response.readline())["end"] == "done"
            assert response.readline() == b""
            assert connection.recv(1) == b""
        wait_closed(counted, "made")

    def test_other_paths(self, running_server):
        """A WebSocket at another path is 404, and its path appears in no metric."""
        for path in ("/", "/stream/", "/classify", "/docs", "/Stream"):
            target = f"{path}?model=walks&{CANARY}"
            response = send(running_server.url, upgrade(target))
            assert_refused(response, 404, "not-found")
        labels = {"method": "GET", "route": "unmatched", "status": "404"}
        name = "http_server_request_duration_seconds_count"
        wait(lambda: value(running_server.metrics(), name, **labels), "it is counted")

    def test_other_methods(self, running_server):
        """Another method is 405, and the error names the right one."""
        for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
            response = running_server.http.request(method, "/stream?model=walks")
            assert response.status_code == 405
            assert response.headers["allow"] == "POST"
            assert response.headers["content-type"] == PROBLEM

    def test_media_types(self, server):
        """NDJSON may have several media types or none. Others, and unsupported
        compression, are 415 with what is accepted."""
        for name, header, accept in (
            ("Content-Type", "text/plain", "accept"),
            ("Content-Type", "application/x-ndjsons", "accept"),
            ("Content-Type", f"application/{CANARY}", "accept"),
            ("Content-Encoding", "br", "accept-encoding"),
            ("Content-Encoding", "identity, gzip", "accept-encoding"),
            ("Content-Encoding", CANARY, "accept-encoding"),
        ):
            target = "/stream?model=walks"
            response = ask_for("ndjson", server, target, **{name: header})
            assert_refused(response, 415, "unsupported-media-type")
            assert accept in response[1]
        for header in (
            "application/x-ndjson",
            "application/jsonl",
            "application/json",
            "Application/X-NDJSON; charset=utf-8",
            "application/x-www-form-urlencoded",
            "",
        ):
            headers = {"Content-Type": header} if header else {}
            with NdjsonStream(server, "model=walks", **headers) as stream:
                assert stream.ask([[1, 2, 3]])["steps"] == 1

    def test_response_headers(self, server):
        """The response is NDJSON that no cache and no proxy keeps, and ends the
        connection."""
        headers = {"X-Request-ID": "my-stream"}
        with NdjsonStream(server, "model=walks", **headers) as stream:
            assert stream.headers["content-type"] == "application/x-ndjson"
            assert stream.headers["cache-control"] == "no-store"
            assert stream.headers["x-accel-buffering"] == "no"
            assert stream.headers["connection"] == "close"
            assert stream.headers["x-request-id"] == "my-stream"
            stream.end()
            assert stream.connection.recv(1) == b""

    @pytest.mark.direct
    def test_handshake_headers(self, server):
        """A WebSocket's handshake has the request id, and no compression, which costs
        more time than it saves."""
        with WebSocketStream(server, "model=walks", compression="deflate") as stream:
            assert REQUEST_ID.fullmatch(stream.headers["x-request-id"])
            assert "sec-websocket-extensions" not in stream.headers
            assert stream.ask([[1, 2, 3]])["steps"] == 1


class TestNdjson:
    def test_line_by_line(self, counted):
        """Each line is answered while the body is still being sent, also if the body's
        length was announced."""
        with NdjsonStream(counted.url, "model=made") as stream:
            counting = CountingStream(stream, 7)
            for length in (1, 3, 2):
                counting.ask(length)
            assert stream.end()["steps"] == 6
        counting = CountingStream(None, 7)
        pairs = [counting.message(length) for length in (1, 2, 3)]
        lines = [text(message).encode() + b"\n" for message, _ in pairs]
        with open_connection(counted.url) as connection:
            headers = {"Host": "here", "Content-Length": sum(map(len, lines))}
            head = head_of("POST /stream?model=made HTTP/1.1", headers)
            connection.sendall(head)
            response = http.client.HTTPResponse(connection)
            response.begin()
            steps = 0
            for line, (_, rows) in zip(lines, pairs, strict=True):
                connection.sendall(line)
                steps += len(rows)
                counting.assert_right(json.loads(response.readline()), rows, steps)
            last = json.loads(response.readline())
            assert (last["end"], last["steps"]) == ("done", 6)
            assert response.readline() == b""

    def test_plain_client(self, counted):
        """A client that sends its whole body before it reads gets every answer."""
        counting = CountingStream(None, 7)
        pairs = [counting.message(length) for length in (2, 1, 5)]
        body = "\n".join(text(message) for message, _ in pairs)
        response = counted.http.post("/stream?model=made", content=body)
        assert response.status_code == 200
        *answers, last = [json.loads(line) for line in response.text.splitlines()]
        steps = 0
        for answer, (_, rows) in zip(answers, pairs, strict=True):
            steps += len(rows)
            counting.assert_right(answer, rows, steps)
        assert (last["end"], last["steps"]) == ("done", 8)

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
    def test_any_chunks(self, counted, lengths, breaks, places, last_break):
        """However a body is cut into chunks, and however its lines end, each line is
        answered in order."""
        counting, body, awaited = CountingStream(None, 7), b"", []
        for length, line_break in zip(lengths, breaks, strict=False):
            message, rows = counting.message(length)
            body += text(message).encode() + line_break
            awaited.append((rows, counting.steps))
        body = body if last_break else body.rstrip()
        places = sorted({min(place, len(body)) for place in places} | {0, len(body)})
        with NdjsonStream(counted.url, "model=made") as stream:
            for start, end in itertools.pairwise(places):
                stream.send_chunk(body[start:end])
            stream.no_more()
            for rows, steps in awaited:
                counting.assert_right(stream.receive(), rows, steps)
            assert stream.assert_ended("done")["steps"] == counting.steps

    def test_too_long(self, counted):
        """A line over the limit is an error, however long it is, and the next one is
        answered."""
        for size in (LIMIT + 1, 3_000_000):
            with NdjsonStream(counted.url, "model=made") as stream:
                counting = CountingStream(stream, 7)
                counting.ask(2)
                message, rows = counting.message(1)
                for start in range(0, size, 65_536):
                    stream.send_chunk(b"x" * min(65_536, size - start))
                stream.send_chunk(b"\n" + text(message).encode() + b"\n")
                answer = stream.receive()
                assert answer["steps"] == 2
                assert answer["error"]["status"] == 413
                detail = f"at most {LIMIT} bytes in a message"
                assert answer["error"]["detail"] == detail
                counting.assert_right(stream.receive(), rows, 3)
                assert stream.end()["steps"] == 3

    def test_longest(self, counted):
        """A message of exactly the limit is answered, over both transports."""
        for kind in KINDS.values():
            with kind(counted.url, "model=made") as stream:
                counting = CountingStream(stream, 7)
                message, rows = counting.message(5)
                stream.send(text(message).ljust(LIMIT))
                counting.assert_right(stream.receive(), rows, 5)
