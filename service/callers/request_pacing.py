"""Which connections may begin a request in a turn of the event loop.

A turn takes as long as all that is begun in it, and an answer takes several. While
owners of several API keys ask, as few requests are begun in a turn as keep it short,
and owners by turns: so who asks seldom waits for a few requests, and not for all that
others have sent. Without several keys nothing waits here.
"""

import asyncio
import time
from collections.abc import Callable

from service.callers.fair_queue import FairQueue
from service.callers.memory_budget import Account

# Beside 128 connections of another owner, which ask without a pause, 99 % of one's
# answers came within 10 ms where 4 requests were begun in a turn (0.6 ms), 17 with 8
# (1.4 ms), 51 with 32. Turns so short cost a tenth of what could be answered.
LEAST, MOST = 4, 64
TURN_SECONDS = 0.001
MIXED_SECONDS = 1.0  # after which an owner who asks nothing counts no more


class RequestPacer:
    """Of all connections."""

    def __init__(self) -> None:
        self.most = LEAST  # in a turn
        self._begun = 0  # in this turn
        self._since = 0.0  # its begin
        self._counts = False  # until the next one
        self._waiting: FairQueue[PacedConnection] = FairQueue(1)
        self._owner: str | None = None  # who asked last
        self._mixed_until = 0.0  # others have asked, too

    def take(self, owner: str) -> bool:
        """Returns whether a request of an owner may be begun now."""
        if owner != self._owner:
            if self._owner is not None:
                self._mixed_until = time.monotonic() + MIXED_SECONDS
            self._owner = owner
        if self._waiting:
            return False
        if self._begun >= self.most and time.monotonic() < self._mixed_until:
            return False
        self._count()
        return True

    def wait(self, turn: "PacedConnection") -> None:
        """Have what a connection has read be handled in its turn."""
        self._waiting.push((turn.account.owner, turn.account.number), turn, 1)

    def _count(self) -> None:
        self._begun += 1
        if not self._counts:
            self._counts = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        now = time.perf_counter()
        if self._waiting:
            short = now - self._since < TURN_SECONDS
            self.most = min(self.most + 1, MOST) if short else LEAST
        self._begun, self._counts, self._since = 0, False, now
        while self._waiting and self._begun < self.most:
            self._count()
            self._waiting.pop().begin()


class PacedConnection:
    """What one connection has read, until it is its turn."""

    def __init__(
        self, turns: RequestPacer, account: Account, receive: Callable[[bytes], None]
    ):
        """
        Args:
            account: of the connection; counts what waits.
            receive: handles what was read.
        """
        self.account, self.data = account, b""
        self._turns, self._paused = turns, False
        self._receive: Callable[[bytes], None] | None = receive
        self._transport: asyncio.Transport | None = None

    def take(self, data: bytes, transport: asyncio.Transport) -> None:
        """Handle what begins a request now, or in its turn. Where there is no room for
        it, the connection is cut off."""
        assert self._receive is not None
        if not self.data and self._turns.take(self.account.owner):
            self._receive(data)
        elif not self.account.add(len(data)):
            transport.abort()
        elif self.data:
            self.data += data
            if not self._paused:
                self._paused = True
                transport.pause_reading()
        else:
            self.data, self._transport = data, transport
            self._turns.wait(self)

    def begin(self) -> None:
        """It is its turn."""
        data, self.data = self.data, b""
        if self._receive is None or self._transport is None:
            return
        self.account.remove(len(data))
        if self._transport.is_closing():
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._receive(data)

    def close(self) -> None:
        """The connection has gone."""
        self._receive = self._transport = None
