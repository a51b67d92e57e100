"""A connection within its limits: time, size, number, and a stop."""

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
from tests.support.servers import SECONDS, running, value, wait

FRAME = [1, 2, 3]
HEAD = b"Host: here\r\n"
ALIVE = b"GET /livez HTTP/1.1\r\n" + HEAD + b"\r\n"
BODY = json.dumps({"sequences": [[FRAME]]}).encode()
POST = b"POST /classify HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"POST /classify HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT = 2_000


@pytest.fixture(scope="module")
def limited(bundles):
    """The service with little patience and little room."""
    limits = {"header_seconds": 0.5, "body_seconds": 0.5, "max_headers": 20}
    size = {"max_header_bytes": LIMIT, "keep_alive_seconds": 2}
    with running(Settings(port=0, bundles=bundles / "walks", **limits, **size)) as made:
        yield made


@contextlib.contextmanager
def connected(url):
    parsed = httpx.URL(url)
    with socket.create_connection((parsed.host, parsed.port), SECONDS) as made:
        yield made


def heard(made):
    """All that comes until the other side closes."""
    parts = []
    while part := made.recv(65536):
        parts.append(part)
    return b"".join(parts)


def said(url, *parts):
    with connected(url) as made:
        for part in parts:
            made.sendall(part)
        return heard(made)


def assert_told(answer, status, slug):
    """One answer, of problem details, after which the connection is closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].split()[1] == str(status)
    assert f"content-type: {MEDIA_TYPE}" in lines
    assert "connection: close" in lines
    problem = json.loads(body)
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["status"] == status


class TestTime:
    @pytest.mark.parametrize(
        "begun",
        [b"G", b"GET /livez HTTP/1.1\r\nHost", ALIVE[:-2], ALIVE + ALIVE[:-2]],
        ids=["letter", "header", "all-but-the-end", "second"],
    )
    def test_head(self, limited, begun):
        """A head that does not come to its end is told so, and its connection
        closed; what came before it is answered."""
        answer = said(limited.url, begun)
        if begun.startswith(ALIVE):
            assert answer.startswith(b"HTTP/1.1 200")
            answer = answer[answer.index(b"HTTP/1.1 408") :]
        assert_told(answer, 408, "request-timeout")

    def test_drop_by_drop(self, limited):
        """Nor has it more time where it comes on, but slowly."""
        with connected(limited.url) as made:
            end = time.monotonic() + SECONDS
            made.settimeout(0.1)
            answer = b""
            while not answer and time.monotonic() < end:
                made.sendall(b"a")
                try:
                    answer = made.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))

    @pytest.mark.parametrize("begun", [b"", b"\r\n", b"\r\n\r\n"])
    def test_nothing(self, limited, begun):
        """Who asks nothing is answered nothing, and hung up on."""
        assert said(limited.url, begun) == b""

    @pytest.mark.parametrize("begun", [POST + BODY[:-1], CHUNKED, CHUNKED + b"5\r\n{"])
    def test_body(self, limited, begun):
        """A body that does not come to its end is told so as well, and counted and
        logged as what it was."""
        labels = {"method": "POST", "route": "/classify", "status": "408"}

        def counted():
            name = "http_server_request_duration_seconds_count"
            return value(limited.metrics(), name, **labels)

        before = counted()
        assert_told(said(limited.url, begun), 408, "request-timeout")
        wait(lambda: counted() == before + 1, "it is counted")

    def test_unread_body(self, limited, monkeypatch):
        """The rest of a body that was answered without it is waited for a moment."""
        monkeypatch.setattr(connection, "SILENT_SECONDS", 0.2)
        begun = b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 9\r\n\r\nab"
        assert said(limited.url, begun).startswith(b"HTTP/1.1 404")

    def test_idle(self, limited):
        """Between two requests there is the time of the setting, then the end."""
        with connected(limited.url) as made:
            made.sendall(ALIVE)
            assert made.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(1)  # longer than a head may take
            made.sendall(ALIVE)
            assert made.recv(65536).startswith(b"HTTP/1.1 200")
            assert heard(made) == b""

    def test_slow_is_not_late(self, limited):
        """A body that comes in pieces, but in time, is answered."""
        with connected(limited.url) as made:
            for at in range(0, len(POST + BODY), 20):
                made.sendall((POST + BODY)[at : at + 20])
                time.sleep(0.02)
            assert made.recv(65536).startswith(b"HTTP/1.1 200")


class TestSize:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * LIMIT,
            b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a" * LIMIT + b": b",
            b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\nHost: x",
            b"GET /livez HTTP/1.1\r\nHost: x" + b"\r\nX: a" * 20,
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10**7,
        ],
        ids=["value", "name", "target", "fields", "ten-megabytes"],
    )
    def test_head(self, limited, head):
        """A head over a limit is refused, whatever it is that is long; also where it
        never ends."""
        for end in (b"\r\n\r\n", b""):
            if end or len(head) > LIMIT * 200:
                assert_told(said(limited.url, head + end), 431, "head-too-large")

    def test_in_pieces(self, limited):
        """It is the same for one that comes in pieces."""
        pieces = [b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 1_500, b"a" * 1_500]
        assert_told(said(limited.url, *pieces), 431, "head-too-large")

    def test_as_long_as_allowed(self, limited):
        """As many fields and as long as allowed is answered, also often."""
        fields = b"X: a\r\n" * 18 + b"Y: " + b"b" * (LIMIT - 200) + b"\r\n"
        request = ALIVE[:-2] + fields + b"\r\n"
        with connected(limited.url) as made:
            for _ in range(3):
                made.sendall(request)
                assert made.recv(65536).startswith(b"HTTP/1.1 200")

    def test_trailers(self, limited):
        """What comes after a body is no header of the request, and has its limit."""
        chunks = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
        trailer = b"X-Request-ID: from-a-trailer\r\n\r\n"
        with connected(limited.url) as made:
            made.sendall(CHUNKED + chunks + trailer)
            answer = made.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"from-a-trailer" not in answer
        long = b"X: " + b"a" * LIMIT + b"\r\n" + b"Y: b"
        assert_told(said(limited.url, CHUNKED, chunks + long), 431, "head-too-large")

    @pytest.mark.parametrize(
        "part",
        [b"0\r\nX: " + b"a" * 100, b"1;" + b"a" * 100, b"0\r\n" + b"X: a\r\n" * 20],
        ids=["value", "extension", "fields"],
    )
    def test_endless_trailers(self, limited, part):
        """What comes behind a body's last chunk, or within the line of one, has the
        limit that a head has."""
        with connected(limited.url) as made, contextlib.suppress(ConnectionError):
            made.sendall(CHUNKED + part)
            for _ in range(100):
                made.sendall(part[-100:] if b"0\r\nX: a" not in part else part[3:])
                if made in select.select([made], [], [], 0.01)[0]:
                    break
            assert_told(heard(made), 431, "head-too-large")


class TestMalformed:
    @pytest.mark.parametrize(
        "request_bytes",
        [
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
        ],
    )
    def test_refused(self, limited, request_bytes):
        """What is no HTTP/1.1, or can be understood in two ways, is refused in the
        form of every other refusal, and its connection closed."""
        assert_told(said(limited.url, request_bytes), 400, "malformed-http")

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET / HTTP/1.1\r\n\r\ngarbage HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /stream HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
    )
    def test_refused_once(self, limited, caplog, request_bytes):
        """What comes behind a refusal changes nothing, nor what it wanted to be."""
        assert_told(said(limited.url, request_bytes), 400, "malformed-http")
        assert not [r for r in caplog.records if r.exc_info]

    def test_behind_a_good_one(self, limited):
        """What came before it is answered."""
        answer = said(limited.url, POST + BODY + b"GARBAGE\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        "second",
        [
            b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
    )
    def test_first_of_two(self, limited, second):
        """A request is answered, and not with the refusal of the one behind it."""
        answer = said(limited.url, POST + BODY + second)
        assert answer.startswith(b"HTTP/1.1 200")

    def test_wants_http2(self, limited):
        """The wish to go on in HTTP/2, with which some clients begin, is passed over:
        the request is answered, and so is the next one."""
        wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        request = POST.replace(HEAD, HEAD + wish + b"HTTP2-Settings: AA\r\n") + BODY
        with connected(limited.url) as made:
            for _ in range(2):
                made.sendall(request)
                assert made.recv(65536).startswith(b"HTTP/1.1 200")


class TestNumber:
    def test_answered_early(self, bundles):
        """One whose request was answered before its body was whole can be displaced
        like every other that is idle."""
        settings = Settings(port=0, bundles=bundles / "walks", max_connections=2)
        early = b"POST /nothing HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\n\r\n"
        with running(settings) as made:
            made.http.close()
            with connected(made.url) as first, connected(made.url) as second:
                for one in (first, second):
                    one.sendall(early)
                    assert one.recv(65536).startswith(b"HTTP/1.1 404")
                    one.sendall(b"x")
                time.sleep(0.1)
                for _ in range(3):
                    with connected(made.url) as other:
                        other.sendall(ALIVE)
                        assert other.recv(65536).startswith(b"HTTP/1.1 200")

    def test_longest_idle_goes(self, bundles):
        """One more than may be open takes the place of the one that has been idle for
        longest; where all are at work it is refused, and told so."""
        settings = Settings(port=0, bundles=bundles / "walks", max_connections=3)
        with running(settings) as made:
            made.http.close()  # its own connection
            with connected(made.url) as first, connected(made.url) as second:
                for one in (first, second):
                    one.sendall(ALIVE)
                    assert one.recv(65536).startswith(b"HTTP/1.1 200")
                second.sendall(POST)  # a body that is to come is idle too
                with connected(made.url) as third, connected(made.url) as fourth:
                    third.sendall(ALIVE)
                    assert third.recv(65536).startswith(b"HTTP/1.1 200")
                    assert first.recv(65536) == b""
                    fourth.sendall(ALIVE)
                    assert fourth.recv(65536).startswith(b"HTTP/1.1 200")
                    second.sendall(BODY)
                    assert second.recv(65536).startswith(b"HTTP/1.1 200")

    def test_all_at_work(self, bundles):
        """Where all that may be open are streams, another is refused, and told so."""
        settings = Settings(port=0, bundles=bundles / "walks", max_connections=2)
        with running(settings) as made:
            made.http.close()
            stream = CHUNKED.replace(b"/classify", b"/stream?model=walks")
            with connected(made.url) as first, connected(made.url) as second:
                for one in (first, second):
                    one.sendall(stream)
                    assert one.recv(65536).startswith(b"HTTP/1.1 200")
                assert_told(said(made.url, ALIVE), 503, "too-many-connections")
            wait(
                lambda: (
                    said(made.url, ALIVE[:-2] + b"Connection: close\r\n\r\n")[9:12]
                    == b"200"
                ),
                "there is room again",
            )


def test_hardly_read(bundles, monkeypatch):
    """Who does not read an answer is hung up on, though it is not whole."""
    monkeypatch.setattr(transport, "CHECK_SECONDS", 0.1)
    settings = Settings(port=0, bundles=bundles / "tags", default_label="tags")
    with running(settings) as made, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        parsed = httpx.URL(made.url)
        slow.connect((parsed.host, parsed.port))
        body = {"sequences": [np.zeros((10_000, 3)).tolist()] * 20}
        packed = gzip.compress(json.dumps(body).encode())
        head = b"POST /label HTTP/1.1\r\n" + HEAD
        head += b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        slow.sendall(head + packed)
        wait(lambda: not made.server.server_state.tasks, "it is cut off")


@contextlib.contextmanager
def half_sent(bundles):
    """A service, and a connection over which half a body has come."""
    settings = Settings(port=0, bundles=bundles / "walks")
    with running(settings) as made, connected(made.url) as half:
        half.sendall(POST + BODY[:5])
        wait(lambda: made.server.server_state.tasks, "it is under way")
        yield made, half


class TestStops:
    def test_serves_on(self, bundles):
        """Told to stop it says so at once, and serves on for a while; whoever asks
        is told to ask elsewhere next."""
        settings = Settings(port=0, bundles=bundles / "walks", drain_seconds=1)
        with running(settings) as made:
            made.server.handle_exit(15, None)
            wait(lambda: made.http.get("/readyz").status_code == 503, "it says so")
            response = made.http.post("/classify", content=BODY)
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
            assert made.http.get("/livez").status_code == 200

    def test_half_a_body(self, bundles, monkeypatch):
        """What has come only half is refused soon, and holds up nothing."""
        monkeypatch.setattr(connection, "STOP_SECONDS", 0.2)
        with half_sent(bundles) as (made, half):
            made.server.stop()
            assert_told(heard(half), 503, "stopping")

    def test_rest_of_a_body(self, bundles):
        """What comes to its end after all is answered."""
        with half_sent(bundles) as (made, half):
            made.server.stop()
            wait(lambda: not made.server.servers[0].sockets, "the port is closed")
            half.sendall(BODY[5:])
            assert heard(half).startswith(b"HTTP/1.1 200")


def test_many_come_in_one_turn(bundles):
    """However long a turn of the loop takes, many connections are taken in it."""
    count, turns = 160, []
    with running(Settings(port=0, bundles=bundles / "walks", workers=1)) as made:
        loop = made.server.servers[0].get_loop()

        def turn():
            if len(made.server.server_state.connections) < count:
                turns.append(time.sleep(0.01))
                loop.call_soon(turn)

        parsed = httpx.URL(made.url)
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((parsed.host, parsed.port))
            loop.call_soon_threadsafe(turn)
            connections = made.server.server_state.connections
            wait(lambda: len(connections) >= count, "all are taken")
    assert len(turns) < count / 4
