"""NDJSON request bodies, read line by line as they arrive."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.callers.memory_budget import Reservation
from service.errors import BadEncoding, BufferFull, ServiceError, TooLarge

DISCARD_SECONDS = 1.0
MAX_EMPTY_BYTES = (
    64 * 2**20
)  # without a message; a few compressed bytes expand to these


class NdjsonReader:
    """Reads the lines of one request body."""

    def __init__(self, receive: Receive, limit: int, reservation: Reservation):
        """
        Args:
            limit: bytes in a line.
            reservation: counts the bytes that are buffered here.
        """
        self._receive, self._limit, self._reservation = receive, limit, reservation
        self._buffer = bytearray()
        self._start = 0  # of the next line: what is before has been returned
        self._searched = 0  # there is no line break before it
        self._empty_bytes = 0  # received since the last line
        self._skipping = False  # the rest of a line over the limit
        self._ended = False
        self._primed: asyncio.Future[Message] | None = None

    async def next_line(self) -> bytes | ServiceError | None:
        """The next line that is not blank, or None after the last.

        It is an error in place of a line over the limit. If the body can't be read any
        further, the error is the last result before None.

        Raises:
            ClientDisconnect: the client has gone.
        """
        while True:
            line = self._cut()
            if line is None:
                if self._ended:
                    return None
                try:
                    await self._read_more()
                except (BadEncoding, BufferFull) as error:
                    return self._end(error)
                if self._empty_bytes > MAX_EMPTY_BYTES:
                    return self._end(TooLarge(f"no message in {MAX_EMPTY_BYTES} bytes"))
            elif self._skipping or len(line) > self._limit:
                self._skipping, self._empty_bytes = False, 0
                return TooLarge(f"at most {self._limit} bytes in a message")
            elif line.strip():
                self._empty_bytes = 0
                return line

    def _end(self, error: ServiceError) -> ServiceError:
        self._buffer.clear()
        self._start = self._searched = 0
        self._ended, self._skipping = True, False
        return error

    def _cut(self) -> bytes | None:
        """The next complete line in the buffer."""
        end = self._buffer.find(b"\n", self._searched)
        left = len(self._buffer) > self._start
        if end < 0 and self._ended and (left or self._skipping):
            end = len(self._buffer)
        if end < 0:
            del self._buffer[: self._start]
            self._start, self._searched = 0, len(self._buffer)
            if self._searched > self._limit:
                self._skipping, self._searched = True, 0
                self._buffer.clear()
            return None
        line = bytes(self._buffer[self._start : end])
        self._start = self._searched = min(end + 1, len(self._buffer))
        return line

    async def _read_more(self) -> None:
        primed, self._primed = self._primed, None
        message = await (primed or self._receive())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        self._empty_bytes += len(part)
        # Skips many blank lines at once.
        self._buffer += part if self._buffer or self._skipping else part.lstrip(b"\n")
        # The connection counts the bytes until they are here.
        pending = message.get("pending", 0)
        self._reservation.resize(len(self._buffer) - self._start + pending)
        self._ended = not message.get("more_body", False)

    async def prime(self) -> None:
        """Start to read, which answers a client's `Expect: 100-continue`."""
        self._primed = asyncio.ensure_future(self._receive())
        await asyncio.sleep(0)

    async def discard(self) -> None:
        """Read and drop what is still sent, for a moment: closing a connection with
        unread bytes resets it, and the client may lose the end of the response."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._ended:
                    self._buffer.clear()
                    self._start = self._searched = 0
                    await self._read_more()
        except (TimeoutError, BadEncoding, BufferFull):
            pass
