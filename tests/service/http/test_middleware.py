"""Whole responses: to our own connections, and through another server's `send`."""

import asyncio

import pytest

from service.http.middleware import send_response_at_once
from service.settings import Settings
from tests.service.http.test_connection import HEAD, read_all
from tests.support.bundles import OnnxEngine
from tests.support.servers import open_connection, running

BODY = b'{"sequences": [[[1, 2, 3]]]}'


@pytest.fixture(scope="module")
def url(bundles):
    settings = Settings(port=0, bundles=bundles / "walks")
    with running(settings, load_engine=OnnxEngine) as service:
        yield service.url


def request(*headers: bytes, version: bytes = b"1.1") -> bytes:
    length = b"Content-Length: %d\r\n" % len(BODY)
    lines = b"".join([HEAD, length, *headers])
    return b"POST /classify HTTP/" + version + b"\r\n" + lines + b"\r\n" + BODY


def receive(client) -> tuple[list[bytes], bytes]:
    """The head's lines and the body of a response."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    (size,) = [line[16:] for line in lines if line.startswith(b"content-length: ")]
    while len(body) < int(size):
        body += client.recv(65536)
    return lines, body


def test_keep_alive(url):
    """A connection carries one response after another, each with the server's headers."""
    with open_connection(url) as client:
        for _ in range(2):
            client.sendall(request())
            lines, body = receive(client)
            assert lines[0] == b"http/1.1 200 ok"
            assert any(line.startswith(b"date: ") for line in lines)
            assert not any(line.startswith(b"connection:") for line in lines)
            assert body.startswith(b'{"model":')


def test_close(url):
    """A client that asks for it, or speaks HTTP/1.0, has its connection closed."""
    close = b"Connection: close\r\n"
    for sent in (request(close), request(version=b"1.0")):
        with open_connection(url) as client:
            client.sendall(sent)
            response = read_all(client).lower()
            assert response.startswith(b"http/1.1 200 ok\r\n")
            assert b"\r\nconnection: close\r\n" in response


def test_other_servers():
    """Through a `send` that is not our connection's, the response is two messages."""
    messages = []

    async def send(message):
        messages.append(message)

    headers = [(b"content-length", b"2")]
    asyncio.run(send_response_at_once(send, headers, b"{}"))
    start, body = messages
    assert start == {
        "type": "http.response.start",
        "status": 200,
        "headers": headers,
    }
    assert body == {"type": "http.response.body", "body": b"{}"}
