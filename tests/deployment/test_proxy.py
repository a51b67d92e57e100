"""The service behind nginx, as deploy/nginx.conf sets it up."""

import json
import re
import socket

import httpx
import numpy as np
import pytest

from service import errors
from service.client import Client
from service.settings import Settings
from tests.deployment.nginx import TEXT, needs_nginx, proxied
from tests.support.bundles import random_frames
from tests.support.processes import free_port
from tests.support.servers import SECONDS, send, wait

FRAMES = random_frames(np.random.default_rng(3), 6).tolist()
KINDS = {kind.slug: kind for kind in errors.ServiceError.__subclasses__()}
# Statuses that nginx can refuse with; few of them can be provoked here.
CODES = (400, 401, 403, 404, 405, 411, 413, 414, 421, 429, 494, 500, 501, 502, 503, 504)


@pytest.fixture(scope="module")
def proxy(running_server, tmp_path_factory):
    """The address of nginx in front of the service."""
    port = httpx.URL(running_server.url).port
    with proxied(tmp_path_factory.mktemp("nginx"), port) as url:
        yield url


def seconds(name):
    """The values of a directive of the configuration."""
    return [int(number) for number in re.findall(rf"\b{name} (\d+)s;", TEXT)]


def test_limits_fit_the_service():
    """The proxy takes the bodies that the service takes, and waits longer for a stream
    than the service does."""
    settings = Settings()
    (size,) = re.findall(r"client_max_body_size ([1-9]\d*)m;", TEXT)
    assert int(size) * 2**20 == settings.max_body_bytes
    for name in ("client_body_timeout", "proxy_send_timeout", "proxy_read_timeout"):
        assert max(seconds(name)) > settings.stream_idle_seconds
    assert seconds("client_header_timeout") == [10]
    # The service, not the proxy, times a body out.
    assert min(seconds("client_body_timeout")) > settings.body_seconds


@needs_nginx
def test_predictions(proxy, server):
    """Predictions pass unchanged, and so does the request ID."""
    for task, model in (("classify", "walks"), ("label", "both")):
        body = {"model": model, "sequences": [FRAMES]}
        sent = {"X-Request-ID": "mine-1"}
        response = httpx.post(f"{proxy}/{task}", json=body, headers=sent)
        assert response.status_code == 200, response.text
        assert response.headers["x-request-id"] == "mine-1"
        direct = httpx.post(f"{server}/{task}", json=body).json()
        pairs = zip(response.json()["predictions"], direct["predictions"], strict=True)
        for prediction, right in pairs:
            np.testing.assert_allclose(
                prediction["probabilities"], right["probabilities"], atol=1e-5
            )


@needs_nginx
def test_request_id(proxy):
    """If the request ID is missing or invalid, the proxy generates one."""
    for sent in ({}, {"X-Request-ID": "no good"}):
        headers = httpx.get(f"{proxy}/livez", headers=sent).headers
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


@needs_nginx
def test_web_sockets(proxy):
    """A stream over a WebSocket answers each message before the next is sent."""
    with Client(proxy) as client, client.stream("tags") as stream:
        for step, frame in enumerate(FRAMES, 1):
            assert stream.send([frame]).steps == step


@needs_nginx
def test_lines(proxy):
    """So does a stream of JSON lines: the answer begins before the body ends."""
    url = httpx.URL(proxy)
    with socket.create_connection((url.host, url.port), SECONDS) as connection:
        connection.sendall(
            b"POST /stream?model=tags HTTP/1.1\r\nHost: here\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with connection.makefile("rb") as answers:
            for step, frame in enumerate(FRAMES, 1):
                line = json.dumps({"frames": [frame]}).encode() + b"\n"
                connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
                while not (answer := answers.readline()).startswith(b"{"):
                    assert answer  # a header line, or the size of a chunk
                assert json.loads(answer)["steps"] == step


def assert_problem(status, headers, body):
    """Assert that a response is problem details as the service writes them."""
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == status
    assert headers["x-request-id"] == problem["request_id"]
    assert problem["detail"] == problem["error"]
    slug = problem["type"].removeprefix("urn:unrolled:error:")
    if slug == "internal-error":
        assert status == 500
    else:
        assert KINDS[slug].status == status
        assert problem["title"] == KINDS[slug].title or slug == "rate-limited"
    assert (status in (429, 503)) == ("retry_after" in problem)
    assert headers.get("retry-after") == ("1" if status in (429, 503) else None)


@needs_nginx
def test_refusals(proxy):
    """The proxy refuses requests with the service's problem details."""
    host, long = b"HTTP/1.1\r\nHost: a\r\n", b"a" * 9000
    for request, status in (
        (b"GET / HTTP/1.1\r\nno header\r\n", 400),
        (b"\x16\x03\x01 nonsense\r\n", 400),
        (b"GET / HTTP/1.1\r\n", 400),  # without a host
        (b"GET / HTTP/2.0\r\nHost: a\r\n", 400),
        (b"POST /label %sTransfer-Encoding: zip\r\n" % host, 400),
        (b"GET /metrics " + host, 404),
        (b"GET /predictions " + host, 404),
        (b"TRACE / " + host, 405),
        (b"POST /label %sContent-Length: 8388609\r\n" % host, 413),
        (b"GET /livez %sX: %s\r\n" % (host, long), 431),
        (b"GET /%s %s" % (long, host), 431),
    ):
        got, headers, body = send(proxy, request + b"\r\n")
        assert got == status, request
        assert_problem(status, headers, body)


@needs_nginx
def test_all_error_pages(tmp_path):
    """No status of nginx has one of nginx's own error pages."""
    locations = "".join(f"location = /{code} {{ return {code}; }}\n" for code in CODES)
    changes = {"location = /metrics {": f"{locations}location = /metrics {{"}
    with proxied(tmp_path, free_port(), **changes) as url:
        for code in CODES:
            request = f"GET /{code} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            assert_problem(*send(url, request))


@needs_nginx
def test_old_clients(proxy, server):
    """A request of HTTP/1.0 without a Host header is answered."""
    for url in (server, proxy):
        status, _, body = send(url, b"GET /livez HTTP/1.0\r\n\r\n")
        assert status == 200, body


@needs_nginx
def test_log(running_server, tmp_path):
    """The log has the path of a request, without the query."""
    targets = ("/livez?key=secret", "/metrics?key=secret", "/classify?key=secret")
    with proxied(tmp_path, httpx.URL(running_server.url).port) as url:
        for target in targets:
            httpx.post(url + target, content=b"{}")
        log = tmp_path / "access.log"  # written after the response
        wait(
            lambda: len(log.read_text().splitlines()) == len(targets), "all are logged"
        )
    lines = log.read_text().splitlines()
    logged = [json.loads(line)["path"] for line in lines]
    assert logged == ["/livez", "/metrics", "/classify"]


@needs_nginx
def test_rate_limit(running_server, tmp_path):
    """Beyond the rate limit clients get 429 with Retry-After."""
    port = httpx.URL(running_server.url).port
    slow = {"rate=500r/s": "rate=1r/m", "burst=1000": "burst=1"}
    with proxied(tmp_path, port, **slow) as url:
        answers = [httpx.get(f"{url}/livez") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].json()["type"] == "urn:unrolled:error:rate-limited"


@needs_nginx
def test_no_service(tmp_path):
    """While the service is down, clients get 503 with Retry-After."""
    with proxied(tmp_path, free_port()) as url:
        answer = httpx.post(f"{url}/classify", json={})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["type"] == "urn:unrolled:error:not-ready"
