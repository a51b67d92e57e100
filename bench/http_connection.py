"""HTTP/1.1 by hand on one keep-alive connection, one request at a time.

A client library would cost several times what a server's response does; here a request
is bytes made beforehand, and of a response only status, length and body are read.
"""

import asyncio
from collections.abc import Callable
from typing import Self


class ConnectionLost(ConnectionError):
    """The server disconnected before its response."""


def post_request(path: str, body: bytes) -> bytes:
    """The bytes of a POST with JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Calls `on_response(self, status, body)` after each `send`, and `on_lost(self)` if
    the server disconnects, with a response outstanding (`busy`) or not."""

    def __init__(self) -> None:
        self.on_response: Callable[[Connection, int, bytes], None] = lambda *_: None
        self.on_lost: Callable[[Connection], None] = lambda connection: None
        self.busy = False
        self.place, self.sent = 0, 0.0  # of the outstanding request
        self._head = b""
        self._status, self._missing = 0, -1  # -1: the head is incomplete
        self._parts: list[bytes] = []

    @classmethod
    async def open(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    def send(self, request: bytes) -> None:
        assert not self.busy, "one request at a time"
        self.busy = True
        self.transport.write(request)

    async def request(self, request: bytes) -> tuple[int, bytes]:
        """Send, and wait for the status and the body.

        Raises:
            ConnectionLost: instead of a response.
        """
        future = asyncio.get_running_loop().create_future()
        self.on_response = lambda _, status, body: future.set_result((status, body))
        self.on_lost = lambda _: future.done() or future.set_exception(ConnectionLost())
        self.send(request)
        try:
            return await future
        finally:
            self.on_lost = lambda _: None

    def abort(self) -> None:
        """Disconnect at once."""
        self.on_lost = lambda _: None
        self.transport.abort()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self._missing >= 0:
            self._parts.append(data)
            self._missing -= len(data)
        elif not self._parse_head(data):
            return
        if self._missing == 0:
            body = b"".join(self._parts)
            self._head, self._parts, self._missing = b"", [], -1
            self.busy = False
            self.on_response(self, self._status, body)

    def _parse_head(self, data: bytes) -> bool:
        """The head is complete."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, body = self._head[:end].lower() + b"\r\n", self._head[end + 4 :]
        _, length, rest = head.partition(b"\r\ncontent-length:")
        assert length, f"responses need a Content-Length: {head!r}"
        self._status = int(head[9:12])
        self._missing = int(rest[: rest.index(b"\r\n")]) - len(body)
        self._parts.append(body)
        return True
