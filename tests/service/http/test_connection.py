"""HTTP connections: timeouts, size limits, malformed requests, numbers and shutdown."""

import contextlib
import gzip
import json
import select
import socket
import time

import httpx
import numpy as np
import pytest

from service.errors import MEDIA_TYPE
from service.http import connection, transport
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, open_connection, running, value, wait

FRAME = [1, 2, 3]
HEAD = b"Host: here\r\n"
ALIVE = b"GET /livez HTTP/1.1\r\n" + HEAD + b"\r\n"
BODY = json.dumps({"sequences": [[FRAME]]}).encode()
POST = b"POST /classify HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"POST /classify HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT = 2_000


def serve(bundles, **settings):
    settings = Settings(port=0, bundles=bundles / "walks", **settings)
    return running(settings, load_engine=OnnxEngine)


@pytest.fixture(scope="module")
def limited(bundles):
    """The service with short timeouts and small limits."""
    with serve(
        bundles,
        header_seconds=0.3,
        body_seconds=0.3,
        max_headers=20,
        max_header_bytes=LIMIT,
        keep_alive_seconds=1,
    ) as service:
        yield service


def read_all(client):
    """All input until the other side closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def exchange(url, *parts):
    with open_connection(url) as client:
        for part in parts:
            client.sendall(part)
        return read_all(client)


def assert_ok(client, request):
    client.sendall(request)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


def assert_refused(response, status, slug):
    """It is one response, with problem details, and announces the close."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].split()[1] == str(status), response
    assert f"content-type: {MEDIA_TYPE}" in lines
    assert "connection: close" in lines
    problem = json.loads(body)
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["status"] == status


class TestTimeouts:
    def test_head(self, limited):
        """An unfinished head is refused after its timeout. Requests before it are
        answered."""
        header = b"GET /livez HTTP/1.1\r\nHost"
        for start in (b"G", header, ALIVE[:-2], ALIVE + ALIVE[:-2]):
            response = exchange(limited.url, start)
            if start.startswith(ALIVE):
                assert response.startswith(b"HTTP/1.1 200")
                response = response[response.index(b"HTTP/1.1 408") :]
            assert_refused(response, 408, "request-timeout")

    def test_byte_by_byte(self, limited):
        """A head that arrives slowly has no more time."""
        with open_connection(limited.url) as client:
            deadline = time.monotonic() + SECONDS
            client.settimeout(0.1)
            response = b""
            while not response and time.monotonic() < deadline:
                client.sendall(b"a")
                try:
                    response = client.recv(65536)
                except TimeoutError:
                    continue
        assert response.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))

    def test_no_request(self, limited):
        """A connection without a request is closed without a response."""
        for start in (b"", b"\r\n", b"\r\n\r\n"):
            assert exchange(limited.url, start) == b""

    def test_body(self, limited):
        """An unfinished body is refused after its timeout, counted and logged."""
        labels = {"method": "POST", "route": "/classify", "status": "408"}

        def count():
            name = "http_server_request_duration_seconds_count"
            return value(limited.metrics(), name, **labels)

        before = count()
        for start in (POST + BODY[:-1], CHUNKED, CHUNKED + b"5\r\n{"):
            assert_refused(exchange(limited.url, start), 408, "request-timeout")
        wait(lambda: count() == before + 3, "all are counted")

    def test_unread_body(self, limited, monkeypatch):
        """After a response, the rest of the body is awaited for a moment."""
        monkeypatch.setattr(connection, "SILENT_SECONDS", 0.2)
        head = b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 9\r\n\r\nab"
        assert exchange(limited.url, head).startswith(b"HTTP/1.1 404")

    @pytest.mark.slow
    def test_keep_alive(self, limited):
        """Between requests there is the time of the setting."""
        with open_connection(limited.url) as client:
            assert_ok(client, ALIVE)
            time.sleep(0.6)  # longer than a head may take
            assert_ok(client, ALIVE)
            assert read_all(client) == b""

    def test_slow_body(self, limited):
        """A body that arrives in parts, but in time, is answered."""
        with open_connection(limited.url) as client:
            for at in range(0, len(POST + BODY), 30):
                client.sendall((POST + BODY)[at : at + 30])
                time.sleep(0.02)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


class TestHeadSize:
    def test_too_large(self, limited):
        """A head over a limit is refused, whatever is too long, in parts or endless."""
        start = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
        for parts in (
            [start + b"X: " + b"a" * LIMIT + b"\r\n\r\n"],
            [start + b"a" * LIMIT + b": b\r\n\r\n"],
            [b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
            [start + b"X: a\r\n" * 20 + b"\r\n"],
            [start + b"X: " + b"a" * 10**7],
            [start + b"X: ", b"a" * 1_500, b"a" * 1_500],
        ):
            assert_refused(exchange(limited.url, *parts), 431, "head-too-large")

    def test_largest(self, limited):
        """A head of the limits is answered, again and again."""
        headers = b"X: a\r\n" * 18 + b"Y: " + b"b" * (LIMIT - 200) + b"\r\n"
        with open_connection(limited.url) as client:
            for _ in range(3):
                assert_ok(client, ALIVE[:-2] + headers + b"\r\n")

    def test_trailers(self, limited):
        """Trailers are not headers, and have the limit of a head; so have endless ones,
        and the extensions of a chunk."""
        chunks = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
        trailer = b"X-Request-ID: from-a-trailer\r\n\r\n"
        with open_connection(limited.url) as client:
            client.sendall(CHUNKED + chunks + trailer)
            response = client.recv(65536)
        assert response.startswith(b"HTTP/1.1 200")
        assert b"from-a-trailer" not in response
        long = b"X: " + b"a" * LIMIT + b"\r\n" + b"Y: b"
        response = exchange(limited.url, CHUNKED, chunks + long)
        assert_refused(response, 431, "head-too-large")
        for start, more in (
            (b"0\r\nX: ", b"a" * 100),
            (b"1;", b"a" * 100),
            (b"0\r\n", b"X: a\r\n" * 20),
        ):
            with open_connection(limited.url) as client:
                with contextlib.suppress(ConnectionError):
                    client.sendall(CHUNKED + start)
                    for _ in range(100):
                        client.sendall(more)
                        if client in select.select([client], [], [], 0.01)[0]:
                            break
                assert_refused(read_all(client), 431, "head-too-large")


MALFORMED = [
    b"GARBAGE\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: here:port\r\n\r\n",
    b"GET /livez HTTP/0.9\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"CONNECT here:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    POST[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST[:-2] + b"Content-Length: 1\r\n\r\n0",
    CHUNKED + b"zz\r\n",
    CHUNKED + b"5;a\nb\r\n",
    # What follows an error, or what it wanted to upgrade to, does not matter.
    b"GET / HTTP/1.1\r\n\r\ngarbage HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /stream HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
]


class TestMalformed:
    def test_refused(self, limited, caplog):
        """A request that is not HTTP/1.1, or is ambiguous, gets one error, and the
        connection is closed."""
        for request in MALFORMED:
            response = exchange(limited.url, request)
            assert_refused(response, 400, "malformed-http")
        assert not [record for record in caplog.records if record.exc_info]

    @pytest.mark.slow
    def test_second_request(self, limited, monkeypatch):
        """A malformed request does not affect the response to the one before it."""
        monkeypatch.setattr(connection, "SILENT_SECONDS", 0.1)
        response = exchange(limited.url, POST + BODY + b"GARBAGE\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 200")
        assert response.count(b"HTTP/1.1") == 1
        for second in (
            b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            response = exchange(limited.url, POST + BODY + second)
            assert response.startswith(b"HTTP/1.1 200")

    def test_http2_upgrade(self, limited):
        """An offer to upgrade to HTTP/2 is ignored: this request is answered, and the next
        one too."""
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        request = POST.replace(HEAD, HEAD + offer + b"HTTP2-Settings: AA\r\n") + BODY
        with open_connection(limited.url) as client:
            for _ in range(2):
                assert_ok(client, request)


class TestNumber:
    @pytest.mark.slow
    def test_answered_early(self, bundles):
        """A connection whose response came before the end of its body is evicted like
        every other idle one."""
        early = b"POST /nothing HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\n\r\n"
        with serve(bundles, max_connections=2) as service:
            service.http.close()
            with (
                open_connection(service.url) as first,
                open_connection(service.url) as second,
            ):
                for client in (first, second):
                    client.sendall(early)
                    assert client.recv(65536).startswith(b"HTTP/1.1 404")
                    client.sendall(b"x")
                time.sleep(0.1)
                for _ in range(3):
                    with open_connection(service.url) as other:
                        assert_ok(other, ALIVE)

    def test_longest_idle(self, bundles):
        """At the limit, a new connection takes the place of the one that has been idle
        for longest."""
        with serve(bundles, max_connections=3) as service:
            service.http.close()  # its own connection
            with (
                open_connection(service.url) as first,
                open_connection(service.url) as second,
            ):
                for client in (first, second):
                    assert_ok(client, ALIVE)
                second.sendall(POST)  # idle while its body is awaited
                with (
                    open_connection(service.url) as third,
                    open_connection(service.url) as fourth,
                ):
                    assert_ok(third, ALIVE)
                    assert first.recv(65536) == b""
                    assert_ok(fourth, ALIVE)
                    assert_ok(second, BODY)

    @pytest.mark.slow
    def test_all_busy(self, bundles):
        """If all connections are busy with streams, another one is refused."""
        with serve(bundles, max_connections=2) as service:
            service.http.close()
            stream = CHUNKED.replace(b"/classify", b"/stream?model=walks")
            with (
                open_connection(service.url) as first,
                open_connection(service.url) as second,
            ):
                for client in (first, second):
                    assert_ok(client, stream)
                response = exchange(service.url, ALIVE)
                assert_refused(response, 503, "too-many-connections")
            closing = ALIVE[:-2] + b"Connection: close\r\n\r\n"
            wait(
                lambda: exchange(service.url, closing)[9:12] == b"200",
                "there is room again",
            )


@pytest.mark.slow
def test_slow_reader(bundles, monkeypatch):
    """A client that does not read a response is disconnected."""
    monkeypatch.setattr(transport, "CHECK_SECONDS", 0.1)
    settings = Settings(port=0, bundles=bundles / "tags", default_label="tags")
    with running(settings) as service, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        parsed = httpx.URL(service.url)
        client.connect((parsed.host, parsed.port))
        body = {"sequences": [np.zeros((10_000, 3)).tolist()] * 20}
        packed = gzip.compress(json.dumps(body).encode())
        head = b"POST /label HTTP/1.1\r\n" + HEAD
        head += b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        client.sendall(head + packed)
        wait(lambda: not service.server.server_state.tasks, "it is disconnected")


@contextlib.contextmanager
def half_sent(bundles):
    """A service, and a connection that has sent half a body."""
    with serve(bundles) as service, open_connection(service.url) as client:
        client.sendall(POST + BODY[:5])
        wait(lambda: service.server.server_state.tasks, "it is being received")
        yield service, client


class TestShutdown:
    def test_drains(self, bundles):
        """On SIGTERM, readiness fails at once. Requests are still served, and their
        connections are closed afterwards."""
        with serve(bundles, drain_seconds=1) as service:
            service.server.handle_exit(15, None)
            wait(lambda: service.http.get("/readyz").status_code == 503, "it drains")
            response = service.http.post("/classify", content=BODY)
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
            assert service.http.get("/livez").status_code == 200

    @pytest.mark.slow
    def test_incomplete_body(self, bundles, monkeypatch):
        """An incomplete request is soon refused, or answered if its rest arrives."""
        with half_sent(bundles) as (service, client):
            service.server.stop()
            wait(lambda: not service.server.servers[0].sockets, "the port is closed")
            client.sendall(BODY[5:])
            assert read_all(client).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connection, "STOP_SECONDS", 0.2)
        with half_sent(bundles) as (service, client):
            service.server.stop()
            assert_refused(read_all(client), 503, "stopping")


@pytest.mark.slow
def test_many_in_one_turn(bundles):
    """Many connections are accepted in one turn of the event loop, however long it is."""
    count, turns = 160, []
    with serve(bundles, workers=1) as service:
        loop = service.server.servers[0].get_loop()
        connections = service.server.server_state.connections

        def turn():
            if len(connections) < count:
                turns.append(time.sleep(0.01))
                loop.call_soon(turn)

        parsed = httpx.URL(service.url)
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((parsed.host, parsed.port))
            loop.call_soon_threadsafe(turn)
            wait(lambda: len(connections) >= count, "all are accepted")
    assert len(turns) < count / 4
