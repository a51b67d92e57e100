"""A connection on which bytes are sent, and the answer is kept as it came."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

CHUNKED = b"\r\ntransfer-encoding: chunked"
LENGTH = b"\r\ncontent-length:"
CLOSES = b"\r\nconnection: close"
TEXT, BINARY = 0x81, 0x82  # the first byte of a whole message


class Exchange(asyncio.Protocol):
    """One request after another, or a WebSocket."""

    def __init__(self) -> None:
        self._got = bytearray()
        self._whole: Callable[[bytes], bool] = whole
        self._waits: asyncio.Future[bytes] | None = None
        self.closed = False
        self.usable = True  # for another request

    @classmethod
    async def open(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, "127.0.0.1", port)
        return made

    async def ask(self, request: bytes, frame: bytes = b"") -> bytes:
        """All that is answered, up to the close where nothing else tells its end.

        Args:
            frame: sent once the answer is 101; its answer's first frame is waited for.
        """
        answer = await self._send(request, whole)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        opened = answer.startswith(b"HTTP/1.1 101")
        if opened and frame:
            answer += await self.tell(frame)
        if opened or not head or CLOSES in head or CHUNKED in head:
            self.usable = False
        return answer

    async def tell(self, frame: bytes) -> bytes:
        """The first frame that a WebSocket answers."""
        return await self._send(frame, _frame)

    def _send(self, data: bytes, whole: Callable[[bytes], bool]) -> Awaitable[bytes]:
        self._waits = asyncio.get_running_loop().create_future()
        self._whole = whole
        if self.closed:
            self._end()
        else:
            self.transport.write(data)
        return self._waits

    def send(self, data: bytes) -> None:
        """Send it, and wait for nothing."""
        self.transport.write(data)

    def close(self) -> None:
        self.usable = False
        self.transport.abort()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._waits is not None and self._whole(self._got):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed, self.usable = True, False
        self._end()

    def _end(self) -> None:
        waits, self._waits = self._waits, None
        if waits is not None and not waits.done():
            got, self._got = bytes(self._got), bytearray()
            waits.set_result(got)


def whole(answer: bytes) -> bool:
    """Whether an answer has come to its end, as far as its bytes tell."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    if answer.startswith(b"HTTP/1.1 101"):
        return True
    head = bytes(answer[: end + 2]).lower()
    at = head.find(LENGTH)
    if at < 0:
        return False
    size = int(head[at + len(LENGTH) : head.index(b"\r", at + 2)])
    return len(answer) >= end + 4 + size


def _frame(answer: bytes) -> bool:
    """Whether a frame of a WebSocket has come to its end."""
    if len(answer) < 4:
        return len(answer) >= 2 and not answer[1]
    size, head = answer[1], 2
    if size > 125:
        head = 4 if size == 126 else 10
        size = int.from_bytes(answer[2:head])
    return len(answer) >= head + size


def frame(message: bytes, first: int = TEXT, *, masked: bool = True) -> bytes:
    """A client's frame of a WebSocket; `first` is its first byte."""
    mark = 0x80 if masked else 0
    size = len(message)
    if size < 126:
        head = bytes((first, mark | size))
    elif size < 1 << 16:
        head = bytes((first, mark | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, mark | 127)) + size.to_bytes(8)
    return head + (bytes(4) if masked else b"") + message  # a mask of zeros
