"""A connection's transport, with few writes and a sure end."""

import asyncio
from typing import Any

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


_ALL = frozenset(name for name in dir(asyncio.Transport) if not name.startswith("_"))
