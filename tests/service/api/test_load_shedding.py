"""Refusals that cost next to nothing: of exactly what would be refused anyway."""

import json
import socket
import time

import httpx
import pytest

from service.settings import Settings
from tests.service.http.test_request_timeout import Gated
from tests.support.servers import running, value

FRAME = [1, 2, 3]
PLAIN = json.dumps({"sequences": [[FRAME] * 3]}).encode()
NAMED = json.dumps({"sequences": [[FRAME] * 3], "model": "walks"}).encode()
NAME = "http_server_request_duration_seconds_count"
REFUSED = {"method": "POST", "route": "/classify", "status": "503"}


def request(body, *lines, path="/classify", method="POST"):
    head = [f"{method} {path} HTTP/1.1", "Host: here", *lines]
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture
def full(bundles):
    """A service in which so much waits that no more is let in, and which plain
    requests were answered from their bytes."""
    Gated.gate.set()
    settings = Settings(port=0, bundles=bundles / "walks", workers=1)
    with running(settings, load_engine=Gated) as made:
        (model,) = made.registry.models.values()
        queue, limiter = model.admission.wait_estimate, made.server._limiter
        pool = model.admission._pool
        made.http.post("/classify", content=PLAIN).raise_for_status()
        queue._rate, queue.steps = 10.0, queue.steps + 1000
        queue.charge(-1, 1000)  # of another caller
        answered, inner = [], limiter.shed

        def shed(data, connection):
            pool.last_refusal = queue.refused = time.perf_counter()
            answer = inner(data, connection)
            answered.append(answer is not None)
            return answer

        limiter.shed = shed
        yield made, queue, answered
        queue.steps -= 1000


def ask(made, data, count=1):
    """The answers to requests, one after another, over one connection."""
    parsed = httpx.URL(made.url)
    heads, bodies = [], []
    with socket.create_connection((parsed.host, parsed.port), 30) as connection:
        file = connection.makefile("rb")
        for _ in range(count):
            connection.sendall(data)
            head = {}
            status = int(file.readline().split()[1])
            if status == 100:
                assert file.readline() == b"\r\n"
                status = int(file.readline().split()[1])
            while line := file.readline().strip():
                name, _, text = line.decode().partition(":")
                head[name.lower()] = text.strip()
            heads.append((status, head))
            bodies.append(file.read(int(head["content-length"])))
    return heads, bodies


@pytest.mark.parametrize("body", [PLAIN, NAMED], ids=["plain", "named"])
def test_refused(full, body):
    """Plain requests are refused at once, again and again over one connection, in the
    form of every other refusal, and counted."""
    made, _, answered = full
    before = value(made.metrics(), NAME, **REFUSED)
    heads, bodies = ask(made, request(body), 5)
    assert answered[-5:] == [True] * 5
    for (status, head), text in zip(heads, bodies, strict=True):
        problem = json.loads(text)
        assert status == problem["status"] == 503
        assert problem["type"] == "urn:unrolled:error:overloaded"
        assert head["content-type"] == "application/problem+json"
        assert head["x-request-id"] == problem["request_id"]
        assert int(head["retry-after"]) == problem["retry_after"] >= 100
    assert value(made.metrics(), NAME, **REFUSED) == before + 5
    kind = {"kind": "overloaded"}
    name = "unrolled_refused_requests_total"
    assert value(made.metrics(), name, **kind) == before + 5


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(PLAIN, "Connection: close"), 503),
        (request(PLAIN, "Expect: 100-continue"), 503),
        (request(PLAIN, "Content-Encoding: gzip"), 400),
        (request(PLAIN, "X-Request-Timeout-Ms: soon"), 400),
        (request(PLAIN, "X-Request-ID: mine"), 503),
        (request(PLAIN, "Origin: https://example.org"), 503),
        (request(PLAIN, method="PUT"), 405),
        (request(PLAIN, path="/livez", method="GET"), 200),
        (request(PLAIN, path="/label"), 404),
        (request(NAMED.replace(b"walks", b"nobody")), 404),
        (request(b'{"model": 5, "sequences": []}'), 422),
        (request(PLAIN).replace(b"Host", b"Most"), 400),
        (request(PLAIN, "No-Colon"), 400),
        (request(PLAIN, "Transfer-Encoding: chunked"), 400),
    ],
)
def test_others(full, data, status):
    """What is not plain, or would not be refused for that, is answered as ever."""
    made, *_ = full
    (told, _), *_ = ask(made, data)[0]
    assert told == status
    assert not any(full[2][-1:])


def test_in_pieces(full):
    """So is what is not there as a whole."""
    made, _, answered = full
    parsed = httpx.URL(made.url)
    with socket.create_connection((parsed.host, parsed.port), 30) as connection:
        data = request(PLAIN)
        for part in (data[:30], data[30:100], data[100:]):
            connection.sendall(part)
            time.sleep(0.05)
        assert connection.recv(9)[9:] == b""
    assert not any(answered)


def test_ends(full):
    """When there is room again, the next is answered."""
    made, queue, _ = full
    assert ask(made, request(PLAIN))[0][0][0] == 503
    queue.steps -= 1000
    try:
        assert ask(made, request(PLAIN))[0][0][0] == 200
    finally:
        queue.steps += 1000


def test_longer_time(full):
    """Who waits longer than others is let in where these are refused, and the other
    way round."""
    made, queue, _ = full
    queue._rate = 1000 / 4.0  # four seconds
    assert ask(made, request(PLAIN))[0][0][0] == 200
    queue._rate = 1000 / 4.0
    short = request(PLAIN, "X-Request-Timeout-Ms: 2000")
    assert ask(made, short)[0][0][0] == 503
