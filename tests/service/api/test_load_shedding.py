"""Load shedding: refuses from raw bytes exactly what would be refused anyway."""

import json
import shutil
import socket
import time
from contextlib import contextmanager

import httpx
import pytest

from service.api import load_shedding
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import running, value, wait

FRAME = [1, 2, 3]
PLAIN = json.dumps({"sequences": [[FRAME] * 3]}).encode()
NAMED = json.dumps({"sequences": [[FRAME] * 3], "model": "walks"}).encode()
NAME = "http_server_request_duration_seconds_count"
REFUSED = {"method": "POST", "route": "/classify", "status": "503"}


def request(body, *lines, path="/classify", method="POST"):
    head = [f"{method} {path} HTTP/1.1", "Host: here", *lines]
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


class Shed(list):
    """For each request, whether it was shed."""

    pretend = True  # that requests are being refused


@contextmanager
def overloaded(root):
    """A service of `walks` whose queue is full, with a record of the requests that were
    shed."""
    settings = Settings(port=0, bundles=root, workers=1)
    with running(settings, load_engine=OnnxEngine) as service:
        model = service.registry.models["walks"]
        queue, limiter = model.admission.wait_estimate, service.server._limiter
        pool = model.admission._pool
        service.http.post("/classify", content=PLAIN).raise_for_status()
        queue._rate, queue.steps = 10.0, queue.steps + 1000
        queue.charge(-1, 1000)  # of another caller
        shed, refuse = Shed(), limiter.shed

        def record(data, connection):
            if shed.pretend:
                pool.last_refusal = queue.refused = time.perf_counter()
            response = refuse(data, connection)
            shed.append(response is not None)
            return response

        limiter.shed = record
        yield service, queue, shed
        queue.steps -= 1000


@pytest.fixture
def full(bundles):
    """A service of one model whose queue is full; see `overloaded`."""
    with overloaded(bundles / "walks") as parts:
        yield parts


def test_other_inputs(bundles, text_bundles, tmp_path):
    """While the default model of sequences is overloaded, the one of texts answers,
    wherever the body's fields stand and whatever the texts say."""
    for source in (bundles / "walks", text_bundles / "commands"):
        shutil.copytree(source, tmp_path / source.name)
    with overloaded(tmp_path) as (service, _, _):
        for body in (
            b'{"texts": ["play it"]}',
            b'{"top_k": 1, "texts": ["\\"model\\": \\"walks\\" [x]"]}',
            b'{"states": [null], "texts": ["play it"]}',
            b'{"te\\u0078ts": ["play it"]}',
            b'{"texts": ["play it"], "model": "comm\\u0061nds"}',
        ):
            ((status, _),), (answer,) = ask(service, request(body))
            assert status == 200, answer
            assert json.loads(answer)["model"] == "commands"
        for body in (PLAIN, NAMED, b'{"states": [null], ' + PLAIN[1:]):
            assert ask(service, request(body))[0][0][0] == 503


def ask(service, data, count=1):
    """The responses to requests, one after another, over one connection."""
    parsed = httpx.URL(service.url)
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


def test_refused(full, caplog, monkeypatch):
    """Plain requests are refused at once, again and again over one connection. Their
    errors are like every other, and are counted; the log has one line for many."""
    monkeypatch.setattr(load_shedding, "LOG_SECONDS", 0.1)
    service, _, shed = full
    for count, body in enumerate((PLAIN, NAMED)):
        before = value(service.metrics(), NAME, **REFUSED)
        heads, bodies = ask(service, request(body), 5)
        assert shed[-5:] == [True] * 5
        for (status, head), text in zip(heads, bodies, strict=True):
            problem = json.loads(text)
            assert status == problem["status"] == 503
            assert problem["type"] == "urn:unrolled:error:overloaded"
            assert head["content-type"] == "application/problem+json"
            assert head["x-request-id"] == problem["request_id"]
            assert int(head["retry-after"]) == problem["retry_after"] >= 100
        assert before == 5 * count
        assert value(service.metrics(), NAME, **REFUSED) == before + 5
        name = "unrolled_refused_requests_total"
        assert value(service.metrics(), name, kind="overloaded") == before + 5

    def logged():
        return [r.refused for r in caplog.records if r.msg == "overloaded"]

    wait(lambda: sum(logged()) == 10, "it is logged")
    assert len(logged()) < 10


OTHERS = [
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
]


def test_others(full):
    """A request that is not plain, not complete, or not refused for overload, takes the
    ordinary way."""
    service, _, shed = full
    for data, expected in OTHERS:
        shed.clear()
        ((status, _),), _ = ask(service, data)
        assert status == expected, data
        assert not any(shed), data
    parsed = httpx.URL(service.url)
    with socket.create_connection((parsed.host, parsed.port), 30) as connection:
        data = request(PLAIN)
        for part in (data[:30], data[30:100], data[100:]):
            connection.sendall(part)
            time.sleep(0.05)
        assert connection.recv(12) == b"HTTP/1.1 503"
    assert not any(shed)


def test_only_after_a_refusal(full):
    """Requests are shed only while others are refused."""
    service, _, shed = full
    shed.pretend = False
    assert ask(service, request(PLAIN))[0][0][0] == 503  # by the ordinary way
    assert shed == [False]
    assert ask(service, request(PLAIN))[0][0][0] == 503
    assert shed == [False, True]


def test_ends(full):
    """When there is room again, the next request is answered."""
    service, queue, _ = full
    assert ask(service, request(PLAIN))[0][0][0] == 503
    queue.steps -= 1000
    try:
        assert ask(service, request(PLAIN))[0][0][0] == 200
    finally:
        queue.steps += 1000


def test_timeout(full):
    """A request with a longer timeout is admitted, one with a shorter timeout refused."""
    service, queue, _ = full
    queue._rate = 1000 / 4.0  # four seconds
    assert ask(service, request(PLAIN))[0][0][0] == 200
    queue._rate = 1000 / 4.0
    short = request(PLAIN, "X-Request-Timeout-Ms: 2000")
    assert ask(service, short)[0][0][0] == 503
