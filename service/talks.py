"""How a stream talks with its caller: over ASGI, or past it.

Both end in the same way: the caller is told why, with a token to go on from.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from .stream import Message, Stream

DONE, IDLE, STOPPING, GONE, UNREAD = "done", "idle", "stopping", "gone", "unread"
END_SECONDS = 1.0  # to tell a caller that it ends

# The next message; None after the last.
Next = Callable[[], Awaitable[Message | None]]
Tell = Callable[[bytes], Awaitable[None]]


class AsgiTalk:
    """In the task that the server made for the caller."""

    def __init__(self, stream: Stream, following: Next, tell: Tell):
        """
        Raises:
            Exception: in `run`, whatever `following` and `tell` raise.
        """
        self._stream, self._following, self._tell = stream, following, tell
        self._reason = ""  # why it must end
        self._writes = False
        self._task = asyncio.current_task()
        stream.end = self.end

    async def run(self) -> str:
        """Answer until there is nothing more, the caller says that it was the last
        or is idle for too long, or the service stops; why it ended."""
        try:
            await self._converse()
        except asyncio.CancelledError:
            if not self._reason or self._task is None or self._task.uncancel():
                raise
            if self._writes:
                return UNREAD
        reason = self._reason or DONE
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._tell(self._stream.last(reason))
        except TimeoutError:
            return UNREAD
        return reason

    def end(self, reason: str) -> None:
        """Have it end: at once where it waits, else when it has answered."""
        waits = self._stream.since and not self._reason
        self._reason = self._reason or reason
        if waits and self._task is not None:
            self._task.cancel()

    async def _converse(self) -> None:
        ends = False
        while not (ends or self._reason):
            message = await self._following()
            if message is None:
                return
            line, ends = await self._stream.answer(message)
            if line:
                self._writes = True
                await self._tell(line)
                self._writes = False


class Socket(Protocol):
    """A connection whose messages go past ASGI."""

    clogged: bool  # what was told is not read

    def tell(self, line: bytes) -> None: ...

    def pause(self, wanted: bool) -> None:
        """Read no more for now, or again."""
        ...

    def abort(self) -> None: ...


class DirectTalk:
    """By callbacks of the connection. A message that comes while another is computed,
    or while the caller does not read, waits, and no more are read meanwhile."""

    def __init__(self, stream: Stream, socket: Socket):
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stream, self._socket = stream, socket
        self._waiting: deque[bytes] = deque()
        self._computes = self._turns = False
        self._reason = ""  # why it must end
        stream.end = self.end

    def take(self, message: bytes) -> None:
        """A message has come."""
        if not self.ended.done():
            self._waiting.append(message)
            self._turn()

    def freed(self) -> None:
        """What was told has been read."""
        self._turn()

    def lost(self) -> None:
        """The caller has gone."""
        self._finish(GONE)

    def end(self, reason: str) -> None:
        """Have it end: at once where it waits, else when it has answered."""
        self._reason = self._reason or reason
        if self._socket.clogged:
            self._socket.abort()
            self._finish(UNREAD)
        else:
            self._turn()

    def _turn(self) -> None:
        """Whatever can be done now. Not from within itself: a message may be answered
        before `take` of the stream returns."""
        if self._turns:
            return
        self._turns = True
        waiting, socket = self._waiting, self._socket
        while waiting and not (self._computes or self._reason or socket.clogged):
            self._computes = True
            self._stream.take(waiting.popleft(), self._answered)
        self._turns = False
        socket.pause(bool(waiting))
        if self._reason and not self._computes and not self.ended.done():
            socket.tell(self._stream.last(self._reason))
            self._finish(self._reason)

    def _answered(self, line: bytes, ends: bool) -> None:
        self._computes = False
        if line:
            self._socket.tell(line)
        if ends:
            self._reason = self._reason or DONE
        self._turn()

    def _finish(self, reason: str) -> None:
        if not self.ended.done():
            self._waiting.clear()
            self.ended.set_result(reason)
