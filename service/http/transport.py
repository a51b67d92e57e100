"""A connection's transport, with few writes and a sure end."""

import asyncio
import fcntl
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from service.callers.memory_budget import Account, Reservation
from service.errors import BufferFull

# A client that reads fewer bytes than this in that time is cut off.
LOOK_SECONDS, LEAST_BYTES = 30.0, 30 * 1024
LINGER_SECONDS = 10.0  # without progress, of what was written before the close
HIGH_WATER = 16 * 1024  # bytes that are written and not counted: each client's


class LingeringTransport(asyncio.Transport):
    """A transport that is cut off after its close where the other side does not read
    what was written: it would be kept for ever."""

    own = frozenset({"close"})  # what it does otherwise

    def __init__(self, transport: asyncio.Transport, account: Account):
        super().__init__()
        self.plain, self.account = transport, account
        self._loop = asyncio.get_running_loop()
        for name in _ALL - self.own:  # as attributes: some are asked very often
            setattr(self, name, getattr(transport, name))

    def close(self) -> None:
        self.plain.close()
        if left := unread(self.plain):
            self._loop.call_later(LINGER_SECONDS, self._cut_off, left)

    def _cut_off(self, before: int) -> None:
        left = unread(self.plain)
        if left and left >= before:
            self.plain.abort()
        elif left:
            self._loop.call_later(LINGER_SECONDS, self._cut_off, left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class CoalescingTransport(LingeringTransport):
    """One that sends what is written in one turn of the loop together."""

    own = frozenset({"close", "write"})

    def __init__(
        self,
        transport: asyncio.Transport,
        account: Account,
        lingers: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            lingers: called before a close; where it returns True, the owner of the
                connection closes it later.
        """
        super().__init__(transport, account)
        transport.set_write_buffer_limits(HIGH_WATER)
        self._parts: list[bytes] = []
        self.lingers = lingers

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
        if self.plain.is_closing() or not self.lingers():
            super().close()


class SlowReaderGuard:
    """Counts what the other side has not read yet, and cuts it off where it hardly
    reads on."""

    def __init__(self, transport: asyncio.Transport, account: Account):
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reservation = Reservation(account)
        self._left = 0  # bytes, at the last look
        self._timer: asyncio.TimerHandle | None = None

    def stopped(self, *, patient: bool = False) -> None:
        """More is written than it has read.

        Args:
            patient: let it read as slowly as it likes.
        """
        self.count()
        if self._timer is None and not patient:
            self._watch()

    def goes_on(self) -> None:
        """It has read most."""
        self.cancel()
        self._reservation.release()

    def count(self) -> None:
        """Have what is unread counted; the connection is cut off where it can't be."""
        try:
            self._reservation.resize(self._transport.get_write_buffer_size())
        except BufferFull:
            self._transport.abort()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        self._left = unread(self._transport)
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._transport.is_closing():
            return
        if unread(self._transport) > self._left - LEAST_BYTES:
            self._transport.abort()
            return
        self.count()
        self._watch()


def unread(transport: asyncio.Transport) -> int:
    """Bytes that were written and that the other side has not acknowledged. The kernel
    takes large parts of them at a time: without its own count, who reads slowly looks
    like one who doesn't read for a minute."""
    size = transport.get_write_buffer_size()
    if not size or sys.platform != "linux":
        return size
    sock = transport.get_extra_info("socket")
    try:
        asked = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, ValueError):  # closed meanwhile
        return size
    return size + int(struct.unpack("i", asked)[0])


_ALL = frozenset(name for name in dir(asyncio.Transport) if not name.startswith("_"))
