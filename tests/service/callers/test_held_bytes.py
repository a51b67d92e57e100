"""What the serving process holds for its clients: bounded, shared, and let go of."""

import contextlib
import gc
import gzip
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
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.codecs.process import CodecProcesses
from service.errors import ServiceError
from service.http import connection, transport, websocket
from service.settings import Settings
from service.streaming.stream import Stream
from tests.support.servers import SECONDS, running, value, wait

MIB = 2**20
FRAME = [1, 2, 3]
PADDED = "X-Padding: " + "a" * 12_000 + "\r\n"


@pytest.fixture(scope="module")
def service(bundles):
    """The service with room for few bytes."""
    limits = {"max_body_bytes": MIB, "buffer_bytes": 4 * MIB, "default_label": "tags"}
    with running(Settings(port=0, bundles=bundles, **limits)) as made:
        yield made


@contextlib.contextmanager
def connected(service, receives=0):
    """A socket to the service; its kernel keeps few bytes where `receives` says so."""
    parsed = httpx.URL(service.url)
    with socket.socket() as made:
        made.settimeout(SECONDS)
        if receives:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        made.connect((parsed.host, parsed.port))
        yield made


def heard(made):
    """All that comes until the other side closes."""
    return b"".join(iter(lambda: made.recv(65536), b""))


def post(path, body, *headers, length=None):
    lines = [f"POST {path} HTTP/1.1", "Host: here", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def used(service):
    return service.app.budget.used


def good(service, size=10_000):
    """A sequence is answered, of so many bytes of JSON."""
    body = json.dumps({"sequences": [[FRAME] * 10]}).encode().ljust(size)
    answer = service.http.post("/classify", content=body)
    assert answer.status_code == 200, answer.text


# --- what is kept of a refusal, or of a connection -------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v2/nothing", "/nothing", "/models/no"]
)
def test_refusals_keep_nothing(service, path):
    """A refused request leaves no traceback behind, and so none of its frames."""

    def kept():
        gc.collect()
        return sum(isinstance(o, types.TracebackType) for o in gc.get_objects())

    service.http.get(path)
    before = kept()
    for _ in range(50):
        assert service.http.get(path).status_code in (400, 404)
    assert kept() - before < 10


@contextlib.contextmanager
def _no_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def objects(*kinds):
    return [sum(isinstance(one, kind) for one in gc.get_objects()) for kind in kinds]


ENDS = {
    "answered": b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n",
    "half a head": b"GET /livez HTTP/1.1\r\nHost: here\r\n",
    "half a body": post("/classify", b"{", length=100),
    "refused": b"GET /livez HTTP/9\r\n\r\n",
    "pipelined": b"GET /v9 HTTP/1.1\r\nHost: here\r\n\r\n" * 100,
    "late": post("/classify", b'{"sequences": [[[1, 2, 3]]]}', "X-Request-Timeout-Ms: 1"),
    "handshake": b"GET /stream?model=no HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "stream": b"GET /stream?model=walks HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "wrong": post("/classify", b"{}"),
    "large and wrong": post("/classify", b" " * 100_000),
    "wrong of a stream": post("/stream?model=walks", b"x\n" + b" " * 1_000_000),
    "no handshake": b"GET /stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", ENDS.values(), ids=ENDS.keys())
def test_connections_are_freed(service, request_bytes):
    """A connection that has ended is freed at once, not when the garbage collector
    comes to it: until then it would keep all that its client sent."""
    kinds = connection.Connection, websocket.WebSocket, Stream, ServiceError
    with _no_collector():
        before = objects(*kinds)
        for _ in range(5):
            with connected(service) as made:
                made.sendall(request_bytes)
                made.settimeout(0.3)
                with contextlib.suppress(TimeoutError, OSError):
                    made.recv(1000)

        def freed():
            counts = zip(objects(*kinds), before, strict=True)
            return all(now <= then for now, then in counts)

        wait(freed, "they are freed", 5)


def test_failures_are_freed(service, monkeypatch):
    """So is what waits too long, comes too late, or can't be computed."""
    queue = service.registry.get("walks").admission.wait_estimate
    body = {"sequences": [[FRAME]], "model": "walks"}
    with _no_collector():
        before = objects(ServiceError)
        with monkeypatch.context() as patch:
            patch.setattr(queue, "steps", 10**9)
            assert service.http.post("/classify", json=body).status_code == 503
        body["sequences"] = [[[1e37, -1e37, 1e37]]]
        assert service.http.post("/classify", json=body).status_code in (200, 422)
        wait(lambda: objects(ServiceError) == before, "they are freed", 5)


# --- pipelined requests ----------------------------------------------------------


def test_pipelined(service):
    """Of requests sent one behind another without end some are answered, in order; the
    rest is not taken, and the connection closed."""
    asked = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
    with connected(service) as made:
        made.sendall(asked * 5_000)
        answers = heard(made)
    count = answers.count(b"HTTP/1.1 200 OK")
    assert 1 < count <= connection.MAX_PIPELINED + 2
    assert answers.count(b"connection: close") == 1
    assert answers.count(b'{"status":"alive"}') == count


# --- refusals that come early ----------------------------------------------------

LONG = 28 * MIB


def _urllib(url):
    asked = urllib.request.Request(
        url, b" " * LONG, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        told = json.loads(error.read())
        return error.code if told["type"].endswith("too-large") else told


def _requests(url):
    return requests.post(url, b" " * LONG, timeout=SECONDS).status_code


def _httpx(url):
    return httpx.post(url, content=b" " * LONG, timeout=SECONDS).status_code


def _curl(url):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60"]
    command += ["-H", "Expect:", "-H", "Connection: close", "--data-binary", "@-", url]
    done = subprocess.run(command, input=b" " * LONG, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("client", [_urllib, _requests, _httpx, _curl])
def test_early_refusal_is_heard(service, client):
    """A body that is far too long is refused before it is read, and clients that send
    all of it before they read anything hear so."""
    assert client(f"{service.url}/classify") == 413


def test_lingering_ends(service, monkeypatch):
    """Who goes on sending behind a refusal is cut off after a bound of bytes."""
    monkeypatch.setattr(connection, "LINGER_BYTES", MIB)
    asked = post("/classify", b" " * (64 * MIB), "Connection: close", length=2**40)
    with connected(service) as made, pytest.raises(ConnectionError):
        made.sendall(asked)


# --- the budget ------------------------------------------------------------------


def test_half_bodies(service):
    """Bodies that don't come on are refused where others need the room; those are
    answered."""
    half = post("/classify", b" " * (MIB - 1000), length=MIB - 1)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(connected(service)) for _ in range(12)]
        for one in made:
            one.sendall(half)
        wait(lambda: used(service) > 2 * MIB, "they are there")
        assert used(service) <= 4 * MIB
        for _ in range(5):
            good(service, 500_000)
        one = made[0]
        assert b"503" in one.recv(65536)
    wait(lambda: used(service) == 0, "nothing is held")
    text = service.metrics()
    assert value(text, "unrolled_evicted_connections_total") >= 8


def test_unread_answers(service):
    """Answers of a stream that nobody reads are bounded: the connection is closed."""
    message = json.dumps({"frames": [FRAME] * 20_000}).encode() + b"\n"
    body = gzip.compress(message)
    asked = post("/stream?model=tags", body, "Content-Encoding: gzip")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            made = stack.enter_context(connected(service, receives=1024))
            made.sendall(asked)
        wait(lambda: used(service) > MIB, "answers are unread")
        for _ in range(20):
            assert used(service) <= 4 * MIB
            time.sleep(0.05)
        good(service)
    wait(lambda: used(service) == 0, "nothing is held")


def test_compressed_beside_slow_readers(service):
    """Clients that don't read their answers keep no other from sending what is
    compressed."""
    frames = [FRAME] * 3_000
    body = gzip.compress(json.dumps({"sequences": [frames]}).encode())
    asked = post("/label", body, "Content-Encoding: gzip")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            made = stack.enter_context(connected(service, receives=1024))
            made.sendall(asked)
        wait(lambda: used(service) > MIB, "answers are unread")
        headers = {"Content-Encoding": "gzip"}
        answer = service.http.post("/label", content=body, headers=headers, timeout=5)
        assert answer.status_code == 200
    wait(lambda: used(service) == 0, "nothing is held")


def test_idle_stream(service):
    """A stream that waits for its caller keeps nothing of the last message."""
    message = json.dumps({"frames": [FRAME] * 9_000})
    url = service.url.replace("http", "ws") + "/stream?model=walks"
    with web_sockets.connect(url, proxy=None) as made:
        made.send(message)
        made.recv(SECONDS)
        wait(lambda: used(service) == 0, "nothing is held", 5)
        streams = [one for one in gc.get_objects() if isinstance(one, Stream)]
        assert {one._message.frames for one in streams} == {None}


def test_lost_before_its_turn():
    """A stream's next turn may come after its connection was lost: nothing is left to
    hand on."""
    lost = websocket.WebSocket.__new__(websocket.WebSocket)
    lost._buffer = bytearray(b"x")
    lost.read_more()
    assert lost.buffered


def test_frames_in_bytes(service, monkeypatch):
    """A message of a WebSocket that comes in single bytes is looked at a few times, not
    with each byte."""
    looked = []
    hear = websocket.WebSocket._parse

    def counted(self, data):
        looked.append(len(data))
        return hear(self, data)

    monkeypatch.setattr(websocket.WebSocket, "_parse", counted)
    url = service.url.replace("http", "ws") + "/stream?model=walks"
    with web_sockets.connect(url, proxy=None) as made:
        text = json.dumps({"frames": [FRAME] * 2_000}).encode()
        mask = b"\0\0\0\0"
        frame = b"\x81\xfe" + len(text).to_bytes(2) + mask + text
        made.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.socket.sendall(frame[:5_000])
        for at in range(5_000, 8_000):
            made.socket.sendall(frame[at : at + 1])
        made.socket.sendall(frame[8_000:])
        assert "label" in made.recv(SECONDS)
    assert sum(looked) < 3 * len(frame)


def test_honest_slow_reader(service, monkeypatch):
    """Who reads a large answer slowly, but steadily, gets all of it: what counts is what
    has arrived there, not what the kernel has taken."""
    monkeypatch.setattr(transport, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(transport, "MIN_BYTES", 4_000)
    body = json.dumps({"sequences": [[FRAME] * 10_000]}).encode()
    with connected(service, receives=4096) as made:
        made.sendall(post("/label", body, "Connection: close"))
        size, part = 0, b"x"
        end = time.monotonic() + 3
        while part and time.monotonic() < end:
            part = made.recv(4096)
            size += len(part)
            time.sleep(0.05)
        rest = heard(made)
    assert size + len(rest) > 300_000
    assert rest.endswith(b"]}]}")


# --- answers that are too long ---------------------------------------------------


def tensors(steps, batch, lengths, **parameters):
    """A request to /v2 for `tags`: so many sequences, padded to so many steps."""
    frames = np.zeros((batch, steps, 3), "<f4").tobytes()
    given = np.array(lengths, "<i4").tobytes()
    head = {
        "inputs": [
            {"name": "frames", "datatype": "FP32", "shape": [batch, steps, 3],
             "parameters": {"binary_data_size": len(frames)}},
            {"name": "lengths", "datatype": "INT32", "shape": [batch],
             "parameters": {"binary_data_size": len(given)}},
        ],
        "outputs": [{"name": "probabilities", "parameters": parameters}],
    }  # fmt: skip
    text = json.dumps(head).encode()
    return text + frames + given, {"Inference-Header-Content-Length": str(len(text))}


def test_padded_answer(bundles, monkeypatch):
    """A short sequence in a long tensor is answered aside from the event loop, or is
    refused where the answer would be too long."""
    sizes = []
    run = CodecProcesses.run

    async def counted(self, caller, size, work, *given, **more):
        sizes.append((work.__name__, size))
        return await run(self, caller, size, work, *given, **more)

    monkeypatch.setattr(CodecProcesses, "run", counted)
    with running(Settings(port=0, bundles=bundles)) as service:
        body, headers = tensors(4_000, 20, [1] * 20, classification=3, binary_data=True)
        path = "/v2/models/tags/infer"
        answer = service.http.post(path, content=body, headers=headers)
        assert answer.status_code == 200
        assert any(name == "encode" and size > MIB for name, size in sizes)
        body, headers = tensors(10_000, 40, [1] * 40, classification=3)
        answer = service.http.post(path, content=body, headers=headers)
        assert answer.status_code == 413
        assert "too" in answer.text or "over" in answer.text


class TestDialects:
    """Requests of other protocols have their deadline and their check for room before
    they are parsed, as those of the own API have."""

    PATHS = (
        "/v1/models/walks:predict",
        "/v1/models/walks:classify",
        "/v2/models/walks/infer",
    )

    @pytest.mark.parametrize("path", PATHS)
    def test_deadline(self, service, path, monkeypatch):
        """The time for parsing counts."""

        async def never(*_, **__):
            import asyncio

            await asyncio.sleep(3600)

        monkeypatch.setattr(CodecProcesses, "run", never)
        headers = {"X-Request-Timeout-Ms": "100"}
        answer = service.http.post(path, content=b" " * 100_000, headers=headers)
        assert answer.status_code == 504

    @pytest.mark.parametrize("path", PATHS)
    def test_room(self, service, path, monkeypatch):
        """Where too much waits, what comes is refused unparsed."""
        queue = service.registry.get("walks").admission.wait_estimate
        monkeypatch.setattr(queue, "steps", 10**9)
        answer = service.http.post(path, content=b"no JSON")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]


# --- owners of API keys ----------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(bundles):
    """The service with two API keys, and few places."""
    import hashlib

    keys = {name: f"{name}-secret" for name in ("ann", "bob")}
    digests = ",".join(
        f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
        for name, key in keys.items()
    )
    limits = {"max_streams": 4, "rate_per_key": 30}
    settings = Settings(port=0, bundles=bundles, api_keys=digests, **limits)
    with running(settings, ready=False) as made:
        wait(lambda: made.registry.ready, "the models load")
        clients = {}
        with contextlib.ExitStack() as stack:
            for name, key in keys.items():
                headers = {"X-API-Key": key}
                client = httpx.Client(
                    base_url=made.url, headers=headers, timeout=SECONDS
                )
                clients[name] = stack.enter_context(client)
            yield made, clients["ann"], clients["bob"]


def sequence(client, number, *, start=False, end=False):
    body, headers = tensors(1, 1, [1])
    text = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
    text["parameters"] = {
        "sequence_id": number,
        "sequence_start": start,
        "sequence_end": end,
    }
    head = json.dumps(text).encode()
    body = head + body[int(headers["Inference-Header-Content-Length"]) :]
    headers = {"Inference-Header-Content-Length": str(len(head))}
    time.sleep(0.05)
    return client.post(
        "/v2/models/tags/infer", content=body, headers=headers
    ).status_code


class TestKeys:
    def test_sequences_are_apart(self, keyed):
        """A sequence under an id of one key is none of another's with the same id."""
        _, ann, bob = keyed
        assert sequence(ann, 1, start=True) == 200
        assert sequence(bob, 1) == 400
        assert sequence(bob, 1, start=True) == 200
        assert sequence(bob, 1, end=True) == 200
        assert sequence(ann, 1, end=True) == 200

    def test_sequences_are_shared(self, keyed):
        """One key can't keep so many sequences that another finds no place."""
        _, ann, bob = keyed
        told = [sequence(ann, number, start=True) for number in range(10, 14)]
        assert told == [200, 200, 503, 503]
        assert sequence(bob, 10, start=True) == 200
        for client, number in ((ann, 10), (ann, 11), (bob, 10)):
            assert sequence(client, number, end=True) == 200

    def test_tokens_are_bound(self, keyed):
        """A state goes on with the key that it was given to, not with another."""
        _, ann, bob = keyed
        body = {"sequences": [[FRAME]], "model": "tags", "return_state": True}
        state = ann.post("/label", json=body).json()["predictions"][0]["state"]
        body["states"] = [state]
        assert ann.post("/label", json=body).status_code == 200
        refused = bob.post("/label", json=body)
        assert refused.status_code == 422
        assert refused.json()["type"].endswith("invalid-state")

    def test_streams(self, keyed):
        """Streams are shared between keys as sequences are."""
        service, ann, bob = keyed
        url = service.url.replace("http", "ws") + "/stream?model=tags"

        def opened(client):
            key = client.headers["X-API-Key"]
            return web_sockets.connect(
                url, additional_headers={"X-API-Key": key}, proxy=None
            )

        time.sleep(0.5)
        with opened(ann), opened(ann):
            with pytest.raises(InvalidStatus) as caught:
                opened(ann)
            assert caught.value.response.status_code == 503
            with opened(bob):
                pass

    def test_rate_of_messages(self, keyed):
        """Each message of a stream counts for the rate of its key."""
        service, _, bob = keyed
        url = service.url.replace("http", "ws") + "/stream?model=tags"
        headers = {"X-API-Key": bob.headers["X-API-Key"]}
        time.sleep(1)
        with web_sockets.connect(url, additional_headers=headers, proxy=None) as made:
            told = []
            for _ in range(60):
                made.send(json.dumps({"frames": [FRAME]}))
                told.append(json.loads(made.recv(SECONDS)))
            refused = [one["error"] for one in told if "error" in one]
            assert len(refused) >= 15
            assert {one["status"] for one in refused} == {429}
            assert refused[0]["retry_after"] >= 1
            with contextlib.suppress(ConnectionClosed):
                made.send('{"end": true}')
