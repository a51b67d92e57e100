"""HTTP/1.1 by hand on one connection that stays open, one request at a time.

A client library would cost several times what a server's answer does; here a
request is bytes made beforehand, and of an answer only the status, the length and
the body are looked at.
"""

import asyncio
from collections.abc import Callable
from typing import Self


class Broken(ConnectionError):
    """The server hung up before it had answered."""


def request(path: str, body: bytes) -> bytes:
    """The bytes of a POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Calls `answered(self, status, body)` after each `send`, and `lost(self)` when
    the server hangs up, whether it owes an answer (`busy`) or not."""

    def __init__(self) -> None:
        self.answered: Callable[[Connection, int, bytes], None]
        self.lost: Callable[[Connection], None] = lambda connection: None
        self.busy = False
        self.place, self.begun = 0, 0.0  # of the request under way
        self._head = b""
        self._status, self._missing = 0, -1  # -1: the head isn't whole
        self._parts: list[bytes] = []

    @classmethod
    async def open(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, "127.0.0.1", port)
        return made

    def send(self, request: bytes) -> None:
        assert not self.busy, "one request at a time"
        self.busy = True
        self.transport.write(request)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send, and wait for the status and the body.

        Raises:
            Broken: instead of an answer.
        """
        future = asyncio.get_running_loop().create_future()
        self.answered = lambda _, status, body: future.set_result((status, body))
        self.lost = lambda _: future.done() or future.set_exception(Broken())
        self.send(request)
        try:
            return await future
        finally:
            self.lost = lambda _: None

    def abort(self) -> None:
        """Hang up at once."""
        self.lost = lambda _: None
        self.transport.abort()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost(self)

    def data_received(self, data: bytes) -> None:
        if self._missing >= 0:
            self._parts.append(data)
            self._missing -= len(data)
        elif not self._begin(data):
            return
        if self._missing == 0:
            body = b"".join(self._parts)
            self._head, self._parts, self._missing = b"", [], -1
            self.busy = False
            self.answered(self, self._status, body)

    def _begin(self, data: bytes) -> bool:
        """Whether the head is whole."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, body = self._head[:end].lower() + b"\r\n", self._head[end + 4 :]
        _, found, rest = head.partition(b"\r\ncontent-length:")
        assert found, f"only answers with a Content-Length are understood: {head!r}"
        self._status = int(head[9:12])
        self._missing = int(rest[: rest.index(b"\r\n")]) - len(body)
        self._parts.append(body)
        return True
