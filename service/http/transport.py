"""Transports that write rarely, and whose close always ends."""

import asyncio
import fcntl
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from service.callers.memory_budget import Account, Reservation
from service.errors import BufferFull

# A client that reads less than this in that time is disconnected.
CHECK_SECONDS, MIN_BYTES = 30.0, 30 * 1024
LINGER_SECONDS = 10.0  # after a close, without progress of what was written before
HIGH_WATER = 16 * 1024  # bytes of each client that are written and not counted


class LingeringTransport(asyncio.Transport):
    """A transport that is aborted some time after its close, if the client does not read
    what was written. Otherwise it would stay open for ever."""

    overridden = frozenset({"close"})

    def __init__(self, transport: asyncio.Transport, account: Account):
        super().__init__()
        self.wrapped, self.account = transport, account
        self._loop = asyncio.get_running_loop()
        for name in _METHODS - self.overridden:  # as attributes: some are called often
            setattr(self, name, getattr(transport, name))

    def close(self) -> None:
        self.wrapped.close()
        if unread := unread_bytes(self.wrapped):
            self._loop.call_later(LINGER_SECONDS, self._abort_if_stalled, unread)

    def _abort_if_stalled(self, before: int) -> None:
        unread = unread_bytes(self.wrapped)
        if unread and unread >= before:
            self.wrapped.abort()
        elif unread:
            self._loop.call_later(LINGER_SECONDS, self._abort_if_stalled, unread)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


class CoalescingTransport(LingeringTransport):
    """A transport that sends all that is written in one turn of the event loop at once."""

    overridden = frozenset({"close", "write"})

    def __init__(
        self,
        transport: asyncio.Transport,
        account: Account,
        defer_close: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            defer_close: called before a close; if it returns True, the connection closes
                the transport later itself.
        """
        super().__init__(transport, account)
        transport.set_write_buffer_limits(HIGH_WATER)
        self._parts: list[bytes] = []
        self.defer_close = defer_close

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(bytes(data))

    def flush(self) -> None:
        """Send now what was written."""
        parts, self._parts = self._parts, []
        if parts and not self.wrapped.is_closing():
            self.wrapped.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self.flush()
        if self.wrapped.is_closing() or not self.defer_close():
            super().close()


class SlowReaderGuard:
    """Counts the bytes that the client has not read, and disconnects a client that hardly
    reads at all."""

    def __init__(self, transport: asyncio.Transport, account: Account):
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reservation = Reservation(account)
        self._unread = 0  # bytes, at the last check
        self._timer: asyncio.TimerHandle | None = None

    def writing_paused(self, *, streaming: bool = False) -> None:
        """The client has much left to read.

        Args:
            streaming: let it read as slowly as it likes.
        """
        self.count()
        if self._timer is None and not streaming:
            self._schedule()

    def writing_resumed(self) -> None:
        """The client has read most of what was written."""
        self.cancel()
        self._reservation.release()

    def count(self) -> None:
        """Count the unread bytes, and abort the connection if there is no room for them."""
        try:
            self._reservation.resize(self._transport.get_write_buffer_size())
        except BufferFull:
            self._transport.abort()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._unread = unread_bytes(self._transport)
        self._timer = self._loop.call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._transport.is_closing():
            return
        if unread_bytes(self._transport) > self._unread - MIN_BYTES:
            self._transport.abort()
            return
        self.count()
        self._schedule()


def unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that were written and not acknowledged by the client.

    The kernel takes large parts at a time. Without its own count, a client that reads
    slowly looks for a minute like one that does not read.
    """
    size = transport.get_write_buffer_size()
    if not size or sys.platform != "linux":
        return size
    sock = transport.get_extra_info("socket")
    try:
        reply = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (AttributeError, OSError, ValueError):  # closed in the meantime
        return size
    return size + int(struct.unpack("i", reply)[0])


_METHODS = frozenset(
    name for name in dir(asyncio.Transport) if not name.startswith("_")
)
