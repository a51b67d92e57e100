"""Few writes instead of many."""

import asyncio
from typing import Any

LINGER_SECONDS = 10.0  # without progress, of what was written before the close


class Gathered(asyncio.Transport):
    """A transport that sends what is written in one turn of the loop together."""

    def __init__(self, transport: asyncio.Transport):
        super().__init__()
        self._transport = transport
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(bytes(data))

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()
        self._loop.call_later(LINGER_SECONDS, self._cut_off, self._unread())

    def _cut_off(self, before: int) -> None:
        """Waste no memory on what is closed and whose other side reads nothing."""
        left = self._unread()
        if left and left >= before:
            self._transport.abort()
        elif left:
            self._loop.call_later(LINGER_SECONDS, self._cut_off, left)

    def _unread(self) -> int:
        return self._transport.get_write_buffer_size()

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_transport"), name)


_OWN = frozenset(
    {"write", "close", "_flush", "_cut_off", "_unread", "_parts", "_loop", "_transport"}
)
