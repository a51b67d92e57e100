"""Bodies through nginx: none is stored on disk, and slow ones don't block others."""

import http.client
import json
import shutil
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest

from tests.deployment.nginx import needs_nginx, proxied
from tests.support.bundles import random_frames
from tests.support.processes import serving
from tests.support.servers import SECONDS, send

FRAMES = random_frames(np.random.default_rng(3), 6).tolist()


@pytest.fixture(scope="module")
def proxy(running_server, tmp_path_factory):
    """The address of nginx in front of the service."""
    port = httpx.URL(running_server.url).port
    with proxied(tmp_path_factory.mktemp("nginx"), port) as url:
        yield url


def head(path, size, host="here"):
    text = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    return text.encode()


def padded(size):
    """A prediction request, padded to a size in bytes."""
    body = json.dumps({"model": "walks", "sequences": [FRAMES]}).encode()
    return body.ljust(size)


@needs_nginx
@pytest.mark.slow
def test_unfinished_bodies(proxy):
    """While a client sends large unfinished bodies, the requests of others are answered."""
    size, url = 7 * 2**20, httpx.URL(proxy)
    with ExitStack() as stack:

        def upload():
            address = (url.host, url.port)
            opened = socket.create_connection(address, SECONDS)
            connection = stack.enter_context(opened)
            # The service may refuse and close it to make room.
            with suppress(ConnectionError):
                connection.sendall(head("/classify", size) + padded(size - 1))

        uploads = [threading.Thread(target=upload) for _ in range(40)]
        for thread in uploads:
            thread.start()
        for thread in uploads:
            thread.join(SECONDS)
        answers = [
            httpx.post(f"{proxy}/classify", content=padded(100_000), timeout=SECONDS)
            for _ in range(5)
        ]
    assert [answer.status_code for answer in answers] == [200] * 5, answers[0].text


@pytest.mark.slow
@needs_nginx
def test_no_body_is_stored(running_server, tmp_path):
    """nginx writes no body to disk, whatever its size."""
    with proxied(tmp_path, httpx.URL(running_server.url).port) as url:
        shutil.rmtree(tmp_path / "client_body")
        (tmp_path / "client_body").write_text("no folder")  # nothing can be written
        for path in ("/classify", "/v1/models/walks:predict", "/v2"):
            for size in (1_000, 59_999, 100_000, 7 * 2**20):
                direct = httpx.post(running_server.url + path, content=padded(size))
                proxied_answer = httpx.post(
                    url + path, content=padded(size), timeout=SECONDS
                )
                assert proxied_answer.status_code == direct.status_code


@needs_nginx
@pytest.mark.slow
def test_body_timeout(bundles, tmp_path):
    """A large body that stalls is refused by the service after its timeout."""
    flags = ["--bundles", bundles, "--workers", "1"]
    with (
        serving(tmp_path, *flags, UNROLLED_BODY_SECONDS="0.5") as service,
        proxied(tmp_path, httpx.URL(service.url).port) as url,
    ):
        half = head("/classify", 100_000) + padded(50_000)
        status, headers, body = send(url, half)
    assert status == 408
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"] == "urn:unrolled:error:request-timeout"


@contextmanager
def failing_once():
    """A server that closes the first connection after the request, and answers all
    others; its port, and the request lines that it got."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            requests.append(self.requestline)
            while (
                self.headers["Transfer-Encoding"] and self.rfile.readline() != b"0\r\n"
            ):
                pass
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.close_connection = True
            if len(requests) > 1:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, requests
        finally:
            server.shutdown()
            thread.join(SECONDS)


@needs_nginx
@pytest.mark.parametrize(
    ("path", "size", "tries"),
    [
        pytest.param("/classify?x=%2F", 50_000, 2, id="small"),
        pytest.param("/v1/models/a:predict", 10, 2, id="of-v1"),
        pytest.param("/classify", 100_000, 1, id="large"),
        pytest.param("/v2/models/a/infer", 10, 1, id="of-v2"),
    ],
)
def test_retries(tmp_path, path, size, tries):
    """nginx retries a prediction whose connection breaks. It does not if it didn't buffer
    the body, or if the request may have changed a state."""
    with failing_once() as (port, requests):
        both = f"127.0.0.1:{port};\nserver 127.0.0.1:{port}"
        with proxied(tmp_path, 0, **{"unrolled:8000": both}) as url:
            address = (httpx.URL(url).host, httpx.URL(url).port)
            with socket.create_connection(address, SECONDS) as connection:
                connection.sendall(head(path, size))
                time.sleep(0.1)  # many clients send head and body apart
                connection.sendall(bytes(size))
                answer = http.client.HTTPResponse(connection)
                answer.begin()
    assert answer.status == (200 if tries == 2 else 503)
    assert requests == [f"POST {path} HTTP/1.1"] * tries
