"""Few writes instead of many."""

import asyncio
from typing import Any


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

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_transport"), name)


_OWN = frozenset({"write", "close", "_flush", "_parts", "_loop", "_transport"})
