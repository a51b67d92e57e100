"""The lines of a request's body, as they come."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from service.callers.memory_budget import Reservation
from service.errors import BadEncoding, BufferFull, ServiceError, TooLarge

DISCARD_SECONDS = 1.0
MOST_VAIN = 64 * 2**20  # bytes without a message: of a few, compressed, come so many


class NdjsonReader:
    """Of one body."""

    def __init__(self, receive: Receive, limit: int, reservation: Reservation):
        """
        Args:
            reservation: counts what is read and not handed on.
        """
        self._receive, self._limit, self._reservation = receive, limit, reservation
        self._buffer = bytearray()
        self._at = self._looked = 0  # what is cut off already; without a line break
        self._vain = 0  # bytes since the last line
        self._skips = self._ended = False
        self._primed: asyncio.Future[Message] | None = None

    async def next_line(self) -> bytes | ServiceError | None:
        """The next that is not empty; an error in the place of one over the limit, or
        of all where there is none for long; None after the last.

        Raises:
            ClientDisconnect: the caller has gone.
        """
        while True:
            line = self._cut()
            if line is None:
                if self._ended:
                    return None
                try:
                    await self._more()
                except (BadEncoding, BufferFull) as error:  # the last that is said
                    return self._end(error)
                if self._vain > MOST_VAIN:
                    return self._end(TooLarge(f"no message in {MOST_VAIN} bytes"))
            elif self._skips or len(line) > self._limit:
                self._skips, self._vain = False, 0
                return TooLarge(f"at most {self._limit} bytes in a message")
            elif line.strip():
                self._vain = 0
                return line

    def _end(self, error: ServiceError) -> ServiceError:
        self._buffer.clear()
        self._at = self._looked = 0
        self._ended, self._skips = True, False
        return error

    def _cut(self) -> bytes | None:
        """The line that is whole."""
        end = self._buffer.find(b"\n", self._looked)
        left = len(self._buffer) > self._at
        if end < 0 and self._ended and (left or self._skips):
            end = len(self._buffer)
        if end < 0:
            del self._buffer[: self._at]
            self._at, self._looked = 0, len(self._buffer)
            if self._looked > self._limit:
                self._skips, self._looked = True, 0
                self._buffer.clear()
            return None
        line = bytes(self._buffer[self._at : end])
        self._at = self._looked = min(end + 1, len(self._buffer))
        return line

    async def _more(self) -> None:
        reading, self._primed = self._primed, None
        message = await (reading or self._receive())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        self._vain += len(part)
        # At a line's begin: many that are empty are passed over at once.
        self._buffer += part if self._buffer or self._skips else part.lstrip(b"\n")
        # What comes is counted by the connection, until it is here.
        self._reservation.resize(
            len(self._buffer) - self._at + message.get("pending", 0)
        )
        self._ended = not message.get("more_body", False)

    async def prime(self) -> None:
        """Begin to read, so that a caller who asks whether to go on is told."""
        self._primed = asyncio.ensure_future(self._receive())
        await asyncio.sleep(0)

    async def discard(self) -> None:
        """Read what is still sent, for a moment: a connection that is closed on it is
        reset, and the caller may lose what it was told."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._ended:
                    self._buffer.clear()
                    self._at = self._looked = 0
                    await self._more()
        except (TimeoutError, BadEncoding, BufferFull):
            pass
