"""Requests that are refused or ignored before all of them is read or parsed."""

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.request

import httpx
import pytest
import requests

from service.codecs.process import CodecProcesses
from service.http import connection
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import (
    SECONDS,
    head_of,
    open_connection,
    running,
)

MIB = 2**20
LONG_BODY = b" " * 28 * MIB
PATHS = (
    "/v1/models/walks:predict",
    "/v1/models/walks:classify",
    "/v2/models/walks/infer",
)


@pytest.fixture(scope="module")
def server(bundles):
    """A server that takes bodies of one MiB."""
    settings = Settings(port=0, bundles=bundles, max_body_bytes=MIB)
    with running(settings, load_engine=OnnxEngine) as server:
        yield server


def test_pipelining(server):
    """Of a great many pipelined requests, some are answered in order; the rest is
    ignored, and the connection closed."""
    with open_connection(server.url) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n" * 5_000)
        responses = b"".join(iter(lambda: sock.recv(65536), b""))
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
    headers = {"Host": "here", "Connection": "close", "Content-Length": 2**40}
    request = head_of("POST /classify HTTP/1.1", headers) + b" " * (64 * MIB)
    with open_connection(server.url) as sock, pytest.raises(ConnectionError):
        sock.sendall(request)


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
