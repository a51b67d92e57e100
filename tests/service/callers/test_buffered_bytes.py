"""The bytes that a server buffers for its clients: limited, shared between owners of API
keys, and freed. All through a real server."""

import asyncio
import contextlib
import gc
import gzip
import hashlib
import json
import shutil
import socket
import subprocess
import time
import types
import urllib.error
import urllib.request

import httpx
import numpy as np
import pytest
import requests
import websockets.sync.client as web_sockets
from websockets.exceptions import InvalidStatus

from service.codecs.process import CodecProcesses
from service.errors import ServiceError
from service.http import connection, transport, websocket
from service.settings import Settings
from service.streaming.stream import Stream
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, running, value, wait

MIB = 2**20
FRAME = [1, 2, 3]


@pytest.fixture(scope="module")
def server(bundles):
    """A server with a small buffer."""
    limits = {"max_body_bytes": MIB, "buffer_bytes": 4 * MIB, "default_label": "tags"}
    settings = Settings(port=0, bundles=bundles, **limits)
    with running(settings, load_engine=OnnxEngine) as server:
        yield server


@contextlib.contextmanager
def connect(server, receive_buffer=0):
    """A socket to the server, with a small receive buffer in the kernel if set."""
    url = httpx.URL(server.url)
    with socket.socket() as sock:
        sock.settimeout(SECONDS)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect((url.host, url.port))
        yield sock


def receive_all(sock):
    """Receive until the server closes the connection."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def post(path, body, *headers, length=None):
    lines = [f"POST {path} HTTP/1.1", "Host: here", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def upgrade(path, *headers):
    lines = [f"GET {path} HTTP/1.1", "Host: here", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", *headers, "", ""]
    return "\r\n".join(lines).encode()


def stream_url(server, model):
    return f"{server.url.replace('http', 'ws')}/stream?model={model}"


def used(server):
    return server.app.budget.used


def wait_all_freed(server):
    wait(lambda: used(server) == 0, "all bytes are freed")


def assert_serves(server, size=10_000):
    """Assert that a request of so many bytes is answered."""
    body = json.dumps({"sequences": [[FRAME] * 10]}).encode().ljust(size)
    response = server.http.post("/classify", content=body)
    assert response.status_code == 200, response.text


@contextlib.contextmanager
def no_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count_objects(*kinds):
    return [sum(isinstance(o, kind) for o in gc.get_objects()) for kind in kinds]


class TestFreed:
    def test_refusals(self, server):
        """A refused request leaves no traceback, which would keep its frames."""

        def tracebacks():
            gc.collect()
            return sum(count_objects(types.TracebackType))

        paths = ("/v1/nothing", "/v2/nothing", "/nothing", "/models/no")
        for path in paths:
            server.http.get(path)
        before = tracebacks()
        for path in paths * 15:
            assert server.http.get(path).status_code in (400, 404)
        assert tracebacks() - before < 10

    def test_connections(self, server):
        """A connection that has ended is freed at once, without the garbage collector:
        until then, it would keep all that its client sent."""
        version = "Sec-WebSocket-Version: 13"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        late = "X-Request-Timeout-Ms: 1"
        requests = [
            b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nHost: here\r\n",  # half of the headers
            b"GET /livez HTTP/9\r\n\r\n",
            b"GET /v9 HTTP/1.1\r\nHost: here\r\n\r\n" * 100,
            post("/classify", b"{", length=100),  # half of the body
            post("/classify", b'{"sequences": [[[1, 2, 3]]]}', late),
            post("/classify", b"{}"),
            post("/classify", b" " * 100_000),
            post("/stream?model=walks", b"x\n" + b" " * 1_000_000),
            upgrade("/stream?model=no", version, key),
            upgrade("/stream?model=walks", version, key),
            upgrade("/stream"),  # without a key
        ]
        kinds = connection.Connection, websocket.WebSocket, Stream, ServiceError
        with no_garbage_collector():
            for request in requests:
                before = count_objects(*kinds)
                with contextlib.ExitStack() as stack:
                    for _ in range(5):
                        sock = stack.enter_context(connect(server))
                        sock.settimeout(0.1)
                        with contextlib.suppress(OSError):
                            sock.sendall(request)
                            sock.recv(1000)

                def freed(before=before):
                    counts = zip(count_objects(*kinds), before, strict=True)
                    return all(now <= then for now, then in counts)

                wait(freed, f"freed: {request[:60]}", 5)

    def test_failures(self, server, monkeypatch):
        """So are the errors of requests that are refused or cannot be computed."""
        estimate = server.registry.get("walks").admission.wait_estimate
        body = {"sequences": [[FRAME]], "model": "walks"}
        with no_garbage_collector():
            before = count_objects(ServiceError)
            with monkeypatch.context() as patch:
                patch.setattr(estimate, "steps", 10**9)
                assert server.http.post("/classify", json=body).status_code == 503
            body["sequences"] = [[[1e37, -1e37, 1e37]]]
            response = server.http.post("/classify", json=body)
            assert response.status_code in (200, 422)
            wait(lambda: count_objects(ServiceError) == before, "they are freed", 5)

    def test_idle_stream(self, server):
        """A stream keeps nothing of its last message."""
        with web_sockets.connect(stream_url(server, "walks"), proxy=None) as client:
            client.send(json.dumps({"frames": [FRAME] * 9_000}))
            client.recv(SECONDS)
            wait_all_freed(server)
            streams = [o for o in gc.get_objects() if isinstance(o, Stream)]
            assert {stream._message.frames for stream in streams} == {None}


# --- refusals before the whole request has come ----------------------------------

LONG_BODY = b" " * 28 * MIB


def test_pipelining(server):
    """Of a great many pipelined requests, some are answered in order; the rest is
    ignored, and the connection closed."""
    with connect(server) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n" * 5_000)
        responses = receive_all(sock)
    count = responses.count(b"HTTP/1.1 200 OK")
    assert 1 < count <= connection.MAX_PIPELINED + 2
    assert responses.count(b"connection: close") == 1
    assert responses.count(b'{"status":"alive"}') == count


def _urllib(url):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, LONG_BODY, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=SECONDS)
    with caught.value as error:
        assert json.loads(error.read())["type"].endswith("too-large")
        return error.code


def _requests(url):
    return requests.post(url, LONG_BODY, timeout=SECONDS).status_code


def _httpx(url):
    return httpx.post(url, content=LONG_BODY, timeout=SECONDS).status_code


def _curl(url):
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60"]
    command += ["-H", "Expect:", "-H", "Connection: close", "--data-binary", "@-", url]
    done = subprocess.run(command, input=LONG_BODY, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("client", [_urllib, _requests, _httpx, _curl])
def test_early_refusal(server, client):
    """Clients that send all of a much too long body before they read anything still
    receive its early refusal."""
    if client is _curl and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert client(f"{server.url}/classify") == 413


def test_lingering_ends(server, monkeypatch):
    """A client that goes on sending after a refusal is disconnected."""
    monkeypatch.setattr(connection, "LINGER_BYTES", MIB)
    request = post("/classify", b" " * (64 * MIB), "Connection: close", length=2**40)
    with connect(server) as sock, pytest.raises(ConnectionError):
        sock.sendall(request)


class TestBudget:
    def test_partial_bodies(self, server):
        """Bodies that do not arrive completely are evicted when others need room."""
        partial = post("/classify", b" " * (MIB - 1000), length=MIB - 1)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(connect(server)) for _ in range(12)]
            for sock in sockets:
                sock.sendall(partial)
            wait(lambda: used(server) > 2 * MIB, "they have arrived")
            assert used(server) <= 4 * MIB
            for _ in range(5):
                assert_serves(server, 500_000)
            assert b"503" in sockets[0].recv(65536)
        wait_all_freed(server)
        evicted = value(server.metrics(), "unrolled_evicted_connections_total")
        assert evicted >= 8

    def test_unread_stream(self, server):
        """Unread responses of streams are limited: connections are closed."""
        message = json.dumps({"frames": [FRAME] * 20_000}).encode() + b"\n"
        body = gzip.compress(message)
        request = post("/stream?model=tags", body, "Content-Encoding: gzip")
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(connect(server, 1024)).sendall(request)
            wait(lambda: used(server) > MIB, "responses are unread")
            for _ in range(20):
                assert used(server) <= 4 * MIB
                time.sleep(0.05)
            assert_serves(server)
        wait_all_freed(server)

    def test_slow_readers(self, server):
        """Clients that do not read their responses do not prevent a compressed
        request."""
        sequence = {"sequences": [[FRAME] * 3_000]}
        body = gzip.compress(json.dumps(sequence).encode())
        request = post("/label", body, "Content-Encoding: gzip")
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connect(server, 1024)).sendall(request)
            wait(lambda: used(server) > MIB, "responses are unread")
            headers = {"Content-Encoding": "gzip"}
            response = server.http.post(
                "/label", content=body, headers=headers, timeout=5
            )
            assert response.status_code == 200
        wait_all_freed(server)

    @pytest.mark.slow
    def test_steady_slow_reader(self, server, monkeypatch):
        """A client that reads a long response slowly but steadily gets all of it: what
        counts is what arrives there, not what the kernel has taken."""
        monkeypatch.setattr(transport, "CHECK_SECONDS", 0.5)
        monkeypatch.setattr(transport, "MIN_BYTES", 4_000)
        body = json.dumps({"sequences": [[FRAME] * 10_000]}).encode()
        with connect(server, 4096) as sock:
            sock.sendall(post("/label", body, "Connection: close"))
            size, part = 0, b"x"
            end = time.monotonic() + 3
            while part and time.monotonic() < end:
                part = sock.recv(4096)
                size += len(part)
                time.sleep(0.05)
            rest = receive_all(sock)
        assert size + len(rest) > 300_000
        assert rest.endswith(b"]}]}")


def test_message_in_single_bytes(server, monkeypatch):
    """A WebSocket message that comes in single bytes is parsed a few times, not with
    each byte."""
    sizes = []
    parse = websocket.WebSocket._parse

    def counted(self, data):
        sizes.append(len(data))
        return parse(self, data)

    monkeypatch.setattr(websocket.WebSocket, "_parse", counted)
    with web_sockets.connect(stream_url(server, "walks"), proxy=None) as client:
        text = json.dumps({"frames": [FRAME] * 2_000}).encode()
        mask = b"\0\0\0\0"
        frame = b"\x81\xfe" + len(text).to_bytes(2) + mask + text
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.socket.sendall(frame[:5_000])
        for at in range(5_000, 8_000):
            client.socket.sendall(frame[at : at + 1])
        client.socket.sendall(frame[8_000:])
        assert "label" in client.recv(SECONDS)
    assert sum(sizes) < 3 * len(frame)


def test_read_after_the_connection_is_lost():
    """A stream may read on after its connection was lost, without effect."""
    lost = websocket.WebSocket.__new__(websocket.WebSocket)
    lost._buffer = bytearray(b"x")
    lost.read_more()
    assert lost.buffered


# --- other protocols -------------------------------------------------------------


def infer_request(steps, lengths, *, parameters=None, **outputs):
    """Body and headers of a `/v2` request for `tags`: sequences of these lengths,
    padded to so many steps."""
    batch = len(lengths)
    frames = np.zeros((batch, steps, 3), "<f4").tobytes()
    data = np.array(lengths, "<i4").tobytes()
    inputs = [
        ("frames", "FP32", [batch, steps, 3], len(frames)),
        ("lengths", "INT32", [batch], len(data)),
    ]
    head = {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": shape,
                "parameters": {"binary_data_size": size},
            }
            for name, datatype, shape, size in inputs
        ],
        "outputs": [{"name": "probabilities", "parameters": outputs}],
        "parameters": parameters or {},
    }
    text = json.dumps(head).encode()
    return text + frames + data, {"Inference-Header-Content-Length": str(len(text))}


def test_padded_response(bundles, monkeypatch):
    """A response for short sequences in a long tensor is encoded outside the event
    loop, or refused if it would be too long."""
    sizes = []
    run = CodecProcesses.run

    async def recorded(self, caller, size, function, *args, **kwargs):
        sizes.append((function.__name__, size))
        return await run(self, caller, size, function, *args, **kwargs)

    monkeypatch.setattr(CodecProcesses, "run", recorded)
    settings = Settings(port=0, bundles=bundles)
    with running(settings, load_engine=OnnxEngine) as server:
        for steps, batch, binary, status in (
            (4_000, 20, {"binary_data": True}, 200),
            (10_000, 40, {}, 413),
        ):
            body, headers = infer_request(
                steps, [1] * batch, classification=3, **binary
            )
            response = server.http.post(
                "/v2/models/tags/infer", content=body, headers=headers
            )
            assert response.status_code == status
        assert any(name == "encode" and size > MIB for name, size in sizes)


PATHS = (
    "/v1/models/walks:predict",
    "/v1/models/walks:classify",
    "/v2/models/walks/infer",
)


def test_deadline_before_parsing(server, monkeypatch):
    """The time for parsing counts for the deadline."""

    async def never(*args, **kwargs):
        await asyncio.sleep(3600)

    monkeypatch.setattr(CodecProcesses, "run", never)
    for path in PATHS:
        headers = {"X-Request-Timeout-Ms": "100"}
        response = server.http.post(path, content=b" " * 100_000, headers=headers)
        assert response.status_code == 504


def test_overload_before_parsing(server, monkeypatch):
    """While too much waits, a request is refused before it is parsed."""
    estimate = server.registry.get("walks").admission.wait_estimate
    monkeypatch.setattr(estimate, "steps", 10**9)
    for path in PATHS:
        response = server.http.post(path, content=b"no JSON")
        assert response.status_code == 503
        assert response.headers["Retry-After"]


@pytest.fixture(scope="module")
def keyed(bundles):
    """A server with two API keys, and a client for each key."""
    keys = ("ann", "bob")
    digests = {key: hashlib.sha256(key.encode()).hexdigest() for key in keys}
    settings = Settings(
        port=0,
        bundles=bundles,
        api_keys=",".join(f"{key}:{digest}" for key, digest in digests.items()),
        max_streams=4,
        rate_per_key=30,
    )
    with (
        running(settings, ready=False, load_engine=OnnxEngine) as server,
        contextlib.ExitStack() as stack,
    ):
        wait(lambda: server.registry.ready, "the models load")
        options = {"base_url": server.url, "timeout": SECONDS}
        clients = [httpx.Client(headers={"X-API-Key": key}, **options) for key in keys]
        yield server, *map(stack.enter_context, clients)


class TestOwners:
    """Two API keys share sequences, streams and the rate of messages."""

    def sequence(self, client, number, *, start=False, end=False):
        """Send a step of a sequence, and return the status."""
        body, headers = infer_request(
            1,
            [1],
            parameters={
                "sequence_id": number,
                "sequence_start": start,
                "sequence_end": end,
            },
        )
        time.sleep(0.05)  # within the rate limit
        url = "/v2/models/tags/infer"
        return client.post(url, content=body, headers=headers).status_code

    def test_sequences(self, keyed):
        """Sequences with the same id are different ones for different keys, and one
        key cannot occupy all places."""
        _, ann, bob = keyed
        assert self.sequence(ann, 1, start=True) == 200
        assert self.sequence(bob, 1) == 400
        assert self.sequence(bob, 1, start=True) == 200
        assert self.sequence(bob, 1, end=True) == 200
        assert self.sequence(ann, 1, end=True) == 200
        statuses = [self.sequence(ann, n, start=True) for n in range(10, 14)]
        assert statuses == [200, 200, 503, 503]
        assert self.sequence(bob, 10, start=True) == 200
        for client, number in ((ann, 10), (ann, 11), (bob, 10)):
            assert self.sequence(client, number, end=True) == 200

    def test_state_tokens(self, keyed):
        """A state token is valid only with the key for which it was signed."""
        _, ann, bob = keyed
        body = {"sequences": [[FRAME]], "model": "tags", "return_state": True}
        state = ann.post("/label", json=body).json()["predictions"][0]["state"]
        body["states"] = [state]
        assert ann.post("/label", json=body).status_code == 200
        response = bob.post("/label", json=body)
        assert response.status_code == 422
        assert response.json()["type"].endswith("invalid-state")

    def test_streams(self, keyed):
        """One key cannot open all streams."""
        server, ann, bob = keyed

        def open_stream(client):
            headers = {"X-API-Key": client.headers["X-API-Key"]}
            url = stream_url(server, "tags")
            return web_sockets.connect(url, additional_headers=headers, proxy=None)

        time.sleep(0.5)
        with open_stream(ann), open_stream(ann):
            with pytest.raises(InvalidStatus) as caught:
                open_stream(ann)
            assert caught.value.response.status_code == 503
            with open_stream(bob):
                pass

    def test_rate_of_messages(self, keyed):
        """Each message of a stream counts for the rate of its key."""
        server, _, bob = keyed
        headers = {"X-API-Key": bob.headers["X-API-Key"]}
        time.sleep(1)
        with web_sockets.connect(
            stream_url(server, "tags"), additional_headers=headers, proxy=None
        ) as client:
            answers = []
            for _ in range(60):
                client.send(json.dumps({"frames": [FRAME]}))
                answers.append(json.loads(client.recv(SECONDS)))
            refusals = [a["error"] for a in answers if "error" in a]
            assert len(refusals) >= 15
            assert {error["status"] for error in refusals} == {429}
            assert refusals[0]["retry_after"] >= 1
            client.send('{"end": true}')
