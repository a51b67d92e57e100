"""The Python clients with servers other than the service, or with none."""

import itertools
import json
import socket
import socketserver
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import trustme

from service.client import ClientError, ConnectionLost, InvalidAnswer, RequestError
from tests.support.bundles import random_frames
from tests.support.processes import free_port
from tests.support.servers import SECONDS

FRAMES = random_frames(np.random.default_rng(0), 4)
CALLS = {
    "classify": lambda client: client.classify([FRAMES]),
    "label": lambda client: client.label([FRAMES]),
    "models": lambda client: client.models(),
    "model": lambda client: client.model("walks"),
    "ready": lambda client: client.ready(),
}


def transport(status, **response):
    """A transport with one response for all requests, such as a proxy may send."""
    return httpx.MockTransport(lambda _: httpx.Response(status, **response))


class RawServer(socketserver.ThreadingTCPServer):
    """A server that answers every request with the same bytes."""

    daemon_threads = True

    def __init__(self, raw):
        super().__init__(("127.0.0.1", 0), Handler)
        self.raw, self.heads = raw, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    """Reads a request, keeps its head in lower case, and answers."""

    timeout = SECONDS

    def handle(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n")).decode().lower()
        _, _, length = head.partition("content-length:")
        self.rfile.read(int(length.split()[0]) if length else 0)
        self.server.heads.append(head)
        self.wfile.write(self.server.raw)


@contextmanager
def serving(raw):
    """Run such a server until the block ends."""
    with RawServer(raw) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(SECONDS)


def response(status, body=b"", **headers):
    """The bytes of a response."""
    headers |= {"Content-Length": len(body), "Connection": "close"}
    lines = (f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    return f"HTTP/1.1 {status} Said\r\n{''.join(lines)}\r\n".encode() + body


def answer_with(prediction):
    """The body of an answer with one prediction."""
    members = {"model": "m", "version": "1", "classes": ["a"]}
    return json.dumps({**members, "predictions": [prediction]}).encode()


def raised(client, server, raw, call):
    """The RequestError of a call that gets these bytes as a response."""
    server.raw = raw
    with pytest.raises(RequestError) as caught:
        call(client)
    assert isinstance(caught.value.title, str)
    assert caught.value.address == server.url
    assert str(caught.value).startswith(f"{server.url}: {caught.value.status} ")
    return caught.value


GOOD = {"label": "a", "probability": 1.0, "probabilities": [1.0]}
GOOD |= {"labels": ["a"]}
DIGITS = "9" * 5000
INVALID_ANSWERS = [
    *(b"", b"<h1>Welcome</h1>", b"\xff\xfe", b"[" * 100_000, DIGITS.encode()),
    *(b"[]", b"null", b"{}", b'{"predictions": [], "models": [{}]}'),
    b'{"predictions": 5, "models": 5, "status": 5}',
    *map(answer_with, [5, {}, GOOD | {"label": 5, "labels": 5}, GOOD | {"top": [5]}]),
    *(
        answer_with(GOOD | {"probabilities": probabilities})
        for probabilities in ("no", [None], [[1], [1, 2]], [[[1]]], None)
    ),
]
INVALID_PROBLEMS = [
    *({"errors": [{}]}, {"errors": [{"path": "x"}, {"message": "y"}, 5]}),
    *({"errors": [{"path": 5, "message": ["y"]}]}, {"errors": 5}),
    {"errors": {"path": "x", "message": "y"}},
    {"title": 5, "detail": [], "type": {}, "request_id": 3, "retry_after": [1]},
    *({"retry_after": value} for value in (DIGITS, 1e300, True, -1)),
]


@pytest.fixture(scope="module")
def raw_server():
    with serving(b"") as server:
        yield server


@pytest.fixture
def client(kind, raw_server):
    return kind.client(raw_server.url, timeout=SECONDS, retries=0)


class TestOtherServers:
    """Responses of servers other than the service."""

    def test_invalid_answer(self, client, raw_server):
        """A 200 that is not as documented raises InvalidAnswer with a detail."""
        for body, call in itertools.product(INVALID_ANSWERS, CALLS.values()):
            error = raised(client, raw_server, response(200, body), call)
            assert isinstance(error, InvalidAnswer)
            assert error.status == 200
            assert error.detail

    def test_without_a_body(self, client, raw_server):
        """Any other status without a body raises RequestError."""
        for status, call in itertools.product((204, 300, 304, 308), CALLS.values()):
            assert raised(client, raw_server, response(status), call).status == status

    def test_invalid_problem(self, client, raw_server):
        """Members of problem details that are not as documented are ignored."""
        for problem in INVALID_PROBLEMS:
            raw = response(422, json.dumps(problem).encode())
            error = raised(client, raw_server, raw, CALLS["classify"])
            assert (error.status, error.title, error.detail) == (422, "Said", "")
            assert (error.type, error.request_id) == ("about:blank", "")
            assert (error.errors, error.retry_after) == ([], None)
        for body in (b"[" * 100_000, b'{"retry_after": %s}' % DIGITS.encode()):
            error = raised(client, raw_server, response(500, body), CALLS["models"])
            assert (error.status, error.retry_after) == (500, None)

    def test_retry_after(self, client, raw_server):
        """`retry_after` is that of the header if it is a number of seconds, else that of
        the body."""
        for header, body, seconds in (
            ("7", b'{"retry_after": 3}', 7),
            ("Wed, 21 Oct 2026 07:28:00 GMT", b'{"retry_after": 3}', 3),
            ("", b"{}", None),
            (DIGITS, b"{}", None),
        ):
            raw = response(503, body, Retry_After=header)
            error = raised(client, raw_server, raw, CALLS["label"])
            assert error.retry_after == seconds

    def test_message(self, client, raw_server):
        """The message of an error is one printable line of limited length."""
        problem = {"title": "a\nb\x1b[2J", "detail": "x" * 10**6}
        raw = response(400, json.dumps(problem).encode())
        error = raised(client, raw_server, raw, CALLS["classify"])
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        assert error.title == problem["title"]
        assert error.detail == problem["detail"]

    def test_proxy_error(self, kind):
        """The error of a proxy, whatever its body, is a RequestError with its status;
        a 503 means that the service is not ready."""
        for response in (
            {"html": "<h1>Bad Gateway</h1>"},
            {"content": b""},
            {"content": b"\xff\xfe\x00"},
            {"json": ["no", "problem"]},
            {"json": "no problem"},
            {"json": None},
            {"json": {"errors": ["odd"]}},
        ):
            for status in (502, 503):
                client = kind.client(transport=transport(status, **response), retries=0)
                for name in ("classify", "label", "models"):
                    with pytest.raises(RequestError) as caught:
                        CALLS[name](client)
                    assert caught.value.status == status
                if status == 503:
                    assert client.ready() == ["not ready"]

    def test_not_ready(self, kind):
        """`ready` lists the reasons of a service that isn't ready."""
        body = {"status": "not ready", "reasons": ["loading the bundles"]}
        client = kind.client(transport=transport(503, json=body), retries=0)
        assert client.ready() == ["loading the bundles"]


SECRETS = {
    "headers": {"X-API-Key": "s3cret", "X-Other": "s3cret"},
    "cookies": {"key": "s3cret"},
}


class TestRedirects:
    def test_not_followed(self, client, raw_server):
        """A redirect is not followed; the error has its location."""
        with serving(response(200, b"{}")) as other:
            for status, call in itertools.product((302, 307), CALLS.values()):
                raw = response(status, Location=f"{other.url}/there")
                error = raised(client, raw_server, raw, call)
                assert error.status == status
                assert f"{other.url}/there" in str(error)
            assert other.heads == []

    def test_invalid_location(self, client, raw_server):
        """Nor is a redirect with an invalid location."""
        for location in ("mailto:x", "http://[::1", "http://xn--/", "//", "\xff", ""):
            raw = response(302, Location=location)
            assert raised(client, raw_server, raw, CALLS["models"]).status == 302

    @pytest.mark.parametrize("status", [302, 307])
    def test_to_another_origin(self, kind, status):
        """With `follow_redirects` the caller's headers and cookies are not sent to
        another origin: any of them may hold a key."""
        options = {"timeout": SECONDS, "follow_redirects": True, **SECRETS}
        with serving(response(200, b"{}")) as other:
            redirect = response(status, Location=f"{other.url}/there")
            with serving(redirect) as first:
                client = kind.client(first.url, **options, retries=0)
                for call in CALLS.values():
                    with pytest.raises(InvalidAnswer):
                        call(client)
        assert len(first.heads) == len(other.heads) == len(CALLS)
        assert all(head.count("s3cret") == 3 for head in first.heads)
        assert not any("s3cret" in head for head in other.heads)
        assert all(f"host: {other.url[7:]}" in head for head in other.heads)

    def test_to_the_same_origin(self, kind):
        """They are sent if the redirect stays at the same origin."""

        def answer(request):
            keys.append(request.headers.get("X-API-Key"))
            if request.url.path == "/models":
                return httpx.Response(307, headers={"Location": "/there"})
            return httpx.Response(200, json={"models": []})

        keys = []
        options = {"headers": {"X-API-Key": "s3cret"}, "follow_redirects": True}
        client = kind.client(
            transport=httpx.MockTransport(answer), **options, retries=0
        )
        assert client.models() == []
        assert keys == ["s3cret"] * 2


class TestNoAnswer:
    def test_timeout(self, kind):
        """A service that doesn't answer in time raises ConnectionLost."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            client = kind.client(url, timeout=0.2, retries=0)
            for call in CALLS.values():
                with pytest.raises(ConnectionLost, match=r"no answer in 0\.2 s"):
                    call(client)

    def test_no_service(self, kind):
        """So does a service that can't be reached; the message has the address, without
        its credentials, and says how to start one."""
        port = free_port()
        client = kind.client(f"http://me:s3cret@127.0.0.1:{port}", retries=0)
        for call in CALLS.values():
            with pytest.raises(ConnectionLost) as caught:
                call(client)
            assert caught.value.address == f"http://127.0.0.1:{port}"
            message = str(caught.value)
            assert message.startswith(f"http://127.0.0.1:{port}: Connect")
            assert "`unrolled serve` starts one" in message
            assert "s3cret" not in message
            assert isinstance(caught.value, ClientError)
            assert isinstance(caught.value, ConnectionError)

    def test_no_http(self, kind):
        """So does a server that speaks no HTTP, breaks the connection, or has no TLS."""
        for raw, text in (
            (b"SSH-2.0-OpenSSH_9.2\r\n", "the service's port"),
            (b"", "the service's port"),
            (response(200, b"{}")[:-1], "closed"),
        ):
            with serving(raw) as server:
                client = kind.client(server.url, retries=0)
                for call in CALLS.values():
                    with pytest.raises(ConnectionLost, match=text):
                        call(client)

    def test_no_tls(self, kind):
        """So does a server that speaks no TLS to a client that does."""
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def refuse():
                with listening.accept()[0] as connection:
                    connection.recv(1)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.recv(65536)

            client = kind.client(
                f"https://127.0.0.1:{listening.getsockname()[1]}", retries=0
            )
            with ThreadPoolExecutor(1) as pool:
                pool.submit(refuse)
                with pytest.raises(ConnectionLost, match="http:// and not https://"):
                    client.models()

    def test_certificate(self, kind):
        """So does a certificate that is not trusted; `verify` trusts it."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        with serving(response(200, b'{"models": []}')) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            url = server.url.replace("http", "https")
            with pytest.raises(ConnectionLost, match="`verify`"):
                kind.client(url, retries=0).models()
            assert kind.client(url, verify=trusting, retries=0).models() == []

    def test_undecodable(self, kind):
        """A body that is not compressed as its header says raises InvalidAnswer."""
        with serving(response(200, b"{}", Content_Encoding="gzip")) as server:
            client = kind.client(server.url, retries=0)
            for call in CALLS.values():
                with pytest.raises(InvalidAnswer):
                    call(client)

    def test_endless_redirects(self, kind):
        """So do redirects without an end."""
        with serving(response(302, Location="/")) as server:
            client = kind.client(server.url, follow_redirects=True, retries=0)
            with pytest.raises(InvalidAnswer):
                client.models()


def test_invalid_arguments(kind):
    """An address that is not HTTP's, or a header that can't be sent, is a ValueError
    without the secrets in it."""
    for url in (
        "localhost:8000",
        "nonsense",
        "ftp://here",
        "http://",
        "http://[::1",
        "",
    ):
        with pytest.raises(ValueError, match=r"http://HOST:PORT"):
            kind.client(url, retries=0)
    with serving(response(200)) as server:
        client = kind.client(server.url, headers={"X-API-Key": "s3cret\n"}, retries=0)
        with pytest.raises(ValueError, match="header") as caught:
            client.models()
    assert "s3cret" not in str(caught.value)
