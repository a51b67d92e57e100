"""The bytes that a server buffers for its clients: limited, and freed. All through a real server."""

import contextlib
import gc
import gzip
import json
import socket
import time
import types

import httpx
import numpy as np
import pytest
import websockets.sync.client as web_sockets

from service.codecs.process import CodecProcesses
from service.errors import ServiceError
from service.http import connection, transport, websocket
from service.settings import Settings
from service.streaming.stream import Stream
from tests.support.bundles import OnnxEngine
from tests.support.servers import (
    SECONDS,
    running,
    upgrade,
    value,
    wait,
)

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
            upgrade("/stream?model=no"),
            upgrade("/stream?model=walks"),
            upgrade("/stream").replace(b"WebSocket-Key", b"WebSocket-No"),
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
            tensors = {
                "frames": ("FP32", np.zeros((batch, steps, 3), "<f4")),
                "lengths": ("INT32", np.ones(batch, "<i4")),
            }
            inputs = [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": tensor.nbytes},
                }
                for name, (datatype, tensor) in tensors.items()
            ]
            parameters = {"classification": 3} | binary
            outputs = [{"name": "probabilities", "parameters": parameters}]
            body = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
            headers = {"Inference-Header-Content-Length": str(len(body))}
            body += b"".join(tensor.tobytes() for _, tensor in tensors.values())
            url = "/v2/models/tags/infer"
            response = server.http.post(url, content=body, headers=headers)
            assert response.status_code == status
        assert any(name == "encode" and size > MIB for name, size in sizes)
