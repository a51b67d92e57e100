"""An asyncio connection that sends any bytes, and returns responses as they came."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

CHUNKED = b"\r\ntransfer-encoding: chunked"
LENGTH = b"\r\ncontent-length:"
CLOSES = b"\r\nconnection: close"
TEXT, BINARY = 0x81, 0x82  # the first byte of an unfragmented message


class RawConnection(asyncio.Protocol):
    """Sends one request after another, or WebSocket frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._is_complete: Callable[[bytes], bool] = is_complete
        self._pending: asyncio.Future[bytes] | None = None
        self.closed = False
        self.usable = True  # for another request

    @classmethod
    async def open(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    async def request(self, request: bytes, frame: bytes = b"") -> bytes:
        """The response, up to the close unless its head tells its length.

        Args:
            frame: sent after a 101; the first frame of the response is appended.
        """
        response = await self._send(request, is_complete)
        head = response.partition(b"\r\n\r\n")[0].lower()
        opened = response.startswith(b"HTTP/1.1 101")
        if opened and frame:
            response += await self.send_frame(frame)
        if opened or not head or CLOSES in head or CHUNKED in head:
            self.usable = False
        return response

    async def send_frame(self, frame: bytes) -> bytes:
        """The first WebSocket frame of the response."""
        return await self._send(frame, _is_complete_frame)

    def _send(
        self, data: bytes, is_complete: Callable[[bytes], bool]
    ) -> Awaitable[bytes]:
        self._pending = asyncio.get_running_loop().create_future()
        self._is_complete = is_complete
        if self.closed:
            self._resolve()
        else:
            self.transport.write(data)
        return self._pending

    def send(self, data: bytes) -> None:
        """Send bytes without waiting."""
        self.transport.write(data)

    def close(self) -> None:
        self.usable = False
        self.transport.abort()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._pending is not None and self._is_complete(self._buffer):
            self._resolve()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed, self.usable = True, False
        self._resolve()

    def _resolve(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not pending.done():
            data, self._buffer = bytes(self._buffer), bytearray()
            pending.set_result(data)


def is_complete(response: bytes) -> bool:
    """A response is complete, as far as its bytes tell."""
    end = response.find(b"\r\n\r\n")
    if end < 0:
        return False
    if response.startswith(b"HTTP/1.1 101"):
        return True
    head = bytes(response[: end + 2]).lower()
    start = head.find(LENGTH)
    if start < 0:
        return False
    size = int(head[start + len(LENGTH) : head.index(b"\r", start + 2)])
    return len(response) >= end + 4 + size


def _is_complete_frame(data: bytes) -> bool:
    """A WebSocket frame is complete."""
    if len(data) < 4:
        return len(data) >= 2 and not data[1]
    size, head = data[1], 2
    if size > 125:
        head = 4 if size == 126 else 10
        size = int.from_bytes(data[2:head])
    return len(data) >= head + size


def websocket_frame(message: bytes, first: int = TEXT, *, masked: bool = True) -> bytes:
    """A client's WebSocket frame; `first` is its first byte."""
    mark = 0x80 if masked else 0
    size = len(message)
    if size < 126:
        head = bytes((first, mark | size))
    elif size < 1 << 16:
        head = bytes((first, mark | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, mark | 127)) + size.to_bytes(8)
    return head + (bytes(4) if masked else b"") + message  # a mask of zeros
