"""A connection's transport, with few writes and a sure end."""

import asyncio
import math
from typing import Any

# An answer that is read more slowly than this is cut off.
LOOK_SECONDS, LEAST_BYTES = 10.0, 10 * 1024
LINGER_SECONDS = 10.0  # without progress, of what was written before the close


class Closing(asyncio.Transport):
    """A transport that is cut off after its close where the other side does not read
    what was written: it would be kept for ever."""

    own = frozenset({"close"})  # what it does otherwise

    def __init__(self, transport: asyncio.Transport):
        super().__init__()
        self.plain = transport
        self._loop = asyncio.get_running_loop()
        for name in _ALL - self.own:  # as attributes: some are asked very often
            setattr(self, name, getattr(transport, name))

    def close(self) -> None:
        self.plain.close()
        if left := self._unread():
            self._loop.call_later(LINGER_SECONDS, self._cut_off, left)

    def _cut_off(self, before: int) -> None:
        left = self._unread()
        if left and left >= before:
            self.plain.abort()
        elif left:
            self._loop.call_later(LINGER_SECONDS, self._cut_off, left)

    def _unread(self) -> int:
        return self.plain.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class Gathered(Closing):
    """One that sends what is written in one turn of the loop together."""

    own = frozenset({"close", "write"})

    def __init__(self, transport: asyncio.Transport):
        super().__init__(transport)
        self._parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(bytes(data))

    def flush(self) -> None:
        """Send now what was written."""
        parts, self._parts = self._parts, []
        if parts and not self.plain.is_closing():
            self.plain.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self.flush()
        super().close()


class Reading:
    """The other side, of what is written: cut off where it hardly reads on."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._left = math.inf  # bytes, at the last look
        self._stopped = self._watched = False

    def stopped(self) -> None:
        """More is written than it has read."""
        self._stopped = True
        if not self._watched:
            self._watched = True
            self._loop.call_later(LOOK_SECONDS, self._look)

    def goes_on(self) -> None:
        """It has read most."""
        self._stopped, self._left = False, math.inf

    def _look(self) -> None:
        self._watched = False
        if not self._stopped or self._transport.is_closing():
            return
        left = self._transport.get_write_buffer_size()
        if left > self._left - LEAST_BYTES:
            self._transport.abort()
            return
        self._left, self._watched = left, True
        self._loop.call_later(LOOK_SECONDS, self._look)


_ALL = frozenset(name for name in dir(asyncio.Transport) if not name.startswith("_"))
