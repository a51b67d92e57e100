"""The lines of a request's body, as they come."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from .errors import BadEncoding, ServiceError, TooLarge

DISCARD_SECONDS = 1.0


class Lines:
    """Of one body."""

    def __init__(self, receive: Receive, limit: int):
        self._receive, self._limit = receive, limit
        self._buffer = bytearray()
        self._looked = 0  # so far there is no line break
        self._skips = self._ended = False
        self._primed: asyncio.Future[Message] | None = None

    async def following(self) -> bytes | ServiceError | None:
        """The next that is not empty; an error in the place of one over the limit;
        None after the last.

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
                except BadEncoding as error:  # nothing can come after it
                    self._ended = True
                    return error
            elif self._skips or len(line) > self._limit:
                self._skips = False
                return TooLarge(f"at most {self._limit} bytes in a message")
            elif line.strip():
                return line

    def _cut(self) -> bytes | None:
        """The line that is whole."""
        end = self._buffer.find(b"\n", self._looked)
        if end < 0 and self._ended and (self._buffer or self._skips):
            end = len(self._buffer)
        if end < 0:
            self._looked = len(self._buffer)
            if self._looked > self._limit:
                self._skips, self._looked = True, 0
                self._buffer.clear()
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._looked = 0
        return line

    async def _more(self) -> None:
        reading, self._primed = self._primed, None
        message = await (reading or self._receive())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._buffer += message.get("body", b"")
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
                    await self._more()
        except (TimeoutError, BadEncoding):
            pass
