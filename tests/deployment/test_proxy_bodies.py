"""What becomes of bodies that pass through nginx: nothing of them is stored, and others
are not held up."""

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

from tests.support.bundles import random_frames
from tests.support.processes import serving
from tests.support.proxies import needs_nginx, proxied
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
    """A request for a prediction, of so many bytes."""
    body = json.dumps({"model": "walks", "sequences": [FRAMES]}).encode()
    return body.ljust(size)


@needs_nginx
def test_unfinished_bodies(proxy):
    """While one caller sends much and ends nothing, others' bodies are answered."""
    size, url = 7 * 2**20, httpx.URL(proxy)
    with ExitStack() as stack:

        def upload():
            at = (url.host, url.port)
            connection = stack.enter_context(socket.create_connection(at, SECONDS))
            # Those that the service evicts are told, and then cut off.
            with suppress(ConnectionError):
                connection.sendall(head("/classify", size) + padded(size - 1))

        uploads = [threading.Thread(target=upload) for _ in range(40)]
        for one in uploads:
            one.start()
        for one in uploads:
            one.join(SECONDS)
        answers = [
            httpx.post(f"{proxy}/classify", content=padded(100_000), timeout=SECONDS)
            for _ in range(5)
        ]
    assert [one.status_code for one in answers] == [200] * 5, answers[0].text


@needs_nginx
@pytest.mark.parametrize("path", ["/classify", "/v1/models/walks:predict", "/v2"])
def test_no_body_is_stored(running_server, tmp_path, path):
    """No body is written to the file system that callers share, whatever its length."""
    with proxied(tmp_path, httpx.URL(running_server.url).port) as url:
        shutil.rmtree(tmp_path / "client_body")
        (tmp_path / "client_body").write_text("no folder")  # nothing can be written
        for size in (1_000, 59_999, 100_000, 7 * 2**20):
            direct = httpx.post(running_server.url + path, content=padded(size))
            through = httpx.post(url + path, content=padded(size), timeout=SECONDS)
            assert through.status_code == direct.status_code


@needs_nginx
def test_bodies_have_their_time(bundles, tmp_path):
    """A large body that does not come on is refused by the service, in its time."""
    flags = ["--bundles", bundles, "--workers", "1"]
    with (
        serving(tmp_path, *flags, UNROLLED_BODY_SECONDS="0.5") as started,
        proxied(tmp_path, httpx.URL(started.url).port) as url,
    ):
        begun = head("/classify", 100_000) + padded(50_000)
        status, headers, body = send(url, begun)
    assert status == 408
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"] == "urn:unrolled:error:request-timeout"


@contextmanager
def falling():
    """A server that breaks the first connection off when it has a whole request, and
    answers all others; its port, and the first lines of what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked.append(self.requestline)
            while (
                self.headers["Transfer-Encoding"] and self.rfile.readline() != b"0\r\n"
            ):
                pass
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.close_connection = True
            if len(asked) > 1:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
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
def test_asked_again(tmp_path, path, size, tries):
    """A prediction whose connection breaks is asked for again, as it was, however its
    body came; not where the body was not kept, or a state may have changed."""
    with falling() as (port, asked):
        two = f"127.0.0.1:{port};\nserver 127.0.0.1:{port}"
        with proxied(tmp_path, 0, **{"unrolled:8000": two}) as url:
            at = httpx.URL(url)
            with socket.create_connection((at.host, at.port), SECONDS) as connection:
                connection.sendall(head(path, size))
                time.sleep(0.1)  # many clients send it in two parts
                connection.sendall(bytes(size))
                answer = http.client.HTTPResponse(connection)
                answer.begin()
    assert answer.status == (200 if tries == 2 else 503)
    assert asked == [f"POST {path} HTTP/1.1"] * tries
