"""The real service on a real socket, and raw requests."""

import base64
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from service import app as application
from service import server as servers
from service.callers.caller import Caller
from service.callers.memory_budget import MemoryBudget, Reservation
from service.pool import spawn
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import OnnxEngine, random_frames

ROOT = Path(__file__).parents[2]
SECONDS = 60  # nothing here may take longer
# The shared bundles.
TASKS = {"walks": "classify", "tags": "label", "both": "label"}
CLASSES = {
    "walks": ["run", "sit", "stand", "wälk"],
    "tags": ["noun", "verb", "other"],
    "both": ["down", "flat", "up"],
}
LENGTHS = (1, 7, 120, 3)  # the labels of so many steps are compressed


def wait(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Return as soon as the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.005)


def value(exposition: str, name: str, **labels: str) -> float:
    """A metric's value in Prometheus' text format; 0 if there is none."""
    pairs = {f'{key}="{text}"' for key, text in labels.items()}
    for line in exposition.splitlines():
        head, _, number = line.rpartition(" ")
        series, _, inner = head.partition("{")
        if series == name and pairs <= set(inner.rstrip("}").split(",")):
            return float(number)
    return 0.0


def anonymous_caller() -> Caller:
    """A caller without a key or a connection, and with unlimited memory."""
    account = MemoryBudget(2**40, Metrics()).account()
    return Caller(account, Reservation(account))


def open_connection(url: str) -> socket.socket:
    """A connection on which nothing is sent."""
    at = httpx.URL(url)
    connection = socket.create_connection((at.host, at.port), SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head_of(request_line: str, headers: dict[str, object]) -> bytes:
    """A request's head, as bytes."""
    lines = [request_line, *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade(target: str, **headers: object) -> bytes:
    """The request for a WebSocket."""
    defaults = {
        "Host": "here",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    return head_of(f"GET {target} HTTP/1.1", defaults | headers)


def reset_connection(connection: socket.socket) -> None:
    """Reset a connection, as a machine does that lost its network."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def chunked(query: str, **headers: object) -> bytes:
    """The head of a stream's request with a chunked body."""
    defaults = {"Host": "here", "Transfer-Encoding": "chunked"}
    return head_of(f"POST /stream?{query} HTTP/1.1", defaults | headers)


def handshake(url: str, query: str, **headers: object) -> socket.socket:
    """A stream's open WebSocket, as a raw connection."""
    connection = open_connection(url)
    connection.sendall(upgrade(f"/stream?{query}", **headers))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return connection


def send(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response to a raw request. Clients would tidy up
    what they send."""
    with open_connection(url) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): text for name, text in response.getheaders()}
        return response.status, headers, response.read()


def send_get(url: str, target: bytes) -> tuple[int, dict[str, str], bytes]:
    """The same for a GET of exactly this target."""
    return send(url, b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n")


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    url: str
    app: application.Service
    server: servers.Server
    http: httpx.Client

    @property
    def registry(self):
        return self.app.registry

    def metrics(self) -> str:
        return self.http.get("/metrics").text


class GatedEngine(OnnxEngine):
    """An engine that waits for its class's `gate` in each step, and may fail."""

    gate = threading.Event()
    gate.set()
    entered = threading.Semaphore(0)
    error: Exception | None = None

    def step(self, frames, lengths, state):
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        return super().step(frames, lengths, state)

    @classmethod
    def reset(cls):
        """Open the gate, fail no more, and forget who entered."""
        cls.error = None
        cls.gate.set()
        while cls.entered.acquire(blocking=False):
            pass


@contextmanager
def running(
    settings: Settings, *, ready: bool = True, load_engine=None, **options
) -> Iterator[Running]:
    """The real application behind a real socket, until the block ends.

    Args:
        ready: wait until it is.
        load_engine: the only engine to choose from, in workers that are threads.
        options: what `create_app` takes.
    """
    if load_engine is not None:
        options["start"] = spawn.thread({"given": load_engine})
    app = application.create_app(settings, **options)
    server = servers.create_server(app, settings)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        wait(lambda: server.started or not thread.is_alive(), "the server starts")
        assert server.started
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
            service = Running(url, app, server, client)
            if ready:
                registry = service.registry
                wait(lambda: registry.ready or registry.failed, "the models load")
                response = client.get("/readyz")
                assert response.status_code == 200, response.text
            yield service
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def sequences_of(name, lengths=LENGTHS):
    """Random sequences for a shared bundle."""
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


def padded(sequences, padding=0.0):
    """The sequences in one tensor, padded with a number, and their lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    frames = np.full((len(sequences), lengths.max(), 3), padding, np.float32)
    for row, sequence in zip(frames, sequences, strict=True):
        row[: len(sequence)] = sequence
    return frames, lengths


def native_answers(http, name, sequences):
    """The probabilities that the service's own API gives for a bundle's sequences."""
    body = {"model": name, "sequences": [np.array(s).tolist() for s in sequences]}
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return [np.array(p["probabilities"], np.float32) for p in predictions]
