"""How a stream talks with its caller: over ASGI, or past it.

Both end in the same way: the caller is told why, with a token to go on from.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.streaming.stream import Message, Stream

# Why it ended. Of the first five the caller is told.
DONE, IDLE, AGED, STOPPING, FAULTY = "done", "idle", "aged", "stopping", "faulty"
GONE, UNREAD = "gone", "unread"
END_SECONDS = 1.0  # for a caller to read that it ends
MOST_FAULTS = 100  # messages at fault in a row

# The next message; None after the last.
Next = Callable[[], Awaitable[Message | None]]
Begin = Callable[[], Awaitable[None]]
Tell = Callable[[bytes], Awaitable[None]]


class AsgiStreamHandler:
    """In the task that the server made for the caller."""

    def __init__(self, stream: Stream, begin: Begin, following: Next, tell: Tell):
        self._stream, self._begin = stream, begin
        self._following, self._tell = following, tell
        self._reason = ""  # why it must end
        self._waits = self._writes = False
        self._task: asyncio.Task[object] | None = None
        stream.end = self.end

    async def run(self) -> str:
        """Answer until there is nothing more, the caller says that it was the last,
        is idle for too long or sends nothing but faults, or the service stops; why
        it ended.

        Raises:
            Exception: whatever `begin`, `following` and `tell` raise.
        """
        self._task = asyncio.current_task()
        try:
            await self._converse()
        except asyncio.CancelledError:
            # By `end`, or else by another, whom to obey.
            if not self._reason or self._task is None or self._task.uncancel():
                raise
        finally:
            self._task = None  # past being ended
        if self._writes:
            return UNREAD
        reason = self._reason or DONE
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._tell(self._stream.last(reason))
        except TimeoutError:
            return UNREAD
        return reason

    def stop(self) -> None:
        """The service stops."""
        self.end(STOPPING)

    def end(self, reason: str) -> None:
        """Have it end: at once where it waits, a little later where its caller has
        yet to read, else when it has answered."""
        self._reason = self._reason or reason
        if self._writes and reason != IDLE:
            asyncio.get_running_loop().call_later(END_SECONDS, self._cut_off)
        elif self._waits or self._writes:
            self._cut_off()

    def _cut_off(self) -> None:
        if self._task is not None and (self._waits or self._writes):
            self._waits = False  # once
            self._task.cancel()

    async def _converse(self) -> None:
        await self._write(self._begin())
        while not self._reason:
            self._waits = True
            message = await self._following()
            self._waits = False
            if message is None:
                return
            line, ends = await self._stream.answer(message)
            if line:
                await self._write(self._tell(line))
            if ends:
                return
            if self._stream.faults >= MOST_FAULTS:
                self._reason = self._reason or FAULTY
            if self._stream.faults:
                await asyncio.sleep(0)  # nothing else may have let others go on

    async def _write(self, writing: Awaitable[None]) -> None:
        self._writes = True
        await writing
        self._writes = False


class Socket(Protocol):
    """A connection whose messages go past ASGI."""

    @property
    def clogged(self) -> bool:
        """What was told is not read."""
        ...

    @property
    def buffered(self) -> bool:
        """Something has come and was not handed on."""
        ...

    def tell(self, line: bytes) -> None: ...

    def read_on(self) -> None:
        """Hand on what has come, and read more where there is room for it."""
        ...

    def abort(self) -> None: ...


class SocketStreamHandler:
    """By callbacks of the connection. A message that comes while another is computed,
    or while the caller does not read, stays with the connection, and no more are read
    meanwhile."""

    def __init__(self, stream: Stream, socket: Socket):
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.computes = False
        self._stream, self._socket = stream, socket
        self._waiting: deque[bytes] = deque()  # came before this was there
        self._turns = False
        self._reason = ""  # why it must end
        stream.end = self.end

    @property
    def full(self) -> bool:
        """No message can be taken now."""
        return (
            self.computes or self._turns or self._socket.clogged or bool(self._reason)
        )

    def take(self, message: bytes) -> None:
        """A message has come."""
        if self.ended.done():
            return
        if self.full:
            self._waiting.append(message)
        else:
            self.computes = True
            self._stream.take(message, self._answered)

    def freed(self) -> None:
        """What was told has been read."""
        if not self._turns:
            self._turn()

    def lost(self) -> None:
        """The caller has gone."""
        self._finish(GONE)

    def stop(self) -> None:
        """The service stops."""
        self.end(STOPPING)

    def end(self, reason: str) -> None:
        """Have it end: at once where it waits, a little later where its caller has
        yet to read, else when it has answered."""
        self._reason = self._reason or reason
        if self._socket.clogged and reason != IDLE:
            self._loop.call_later(END_SECONDS, self._cut_off)
        elif self._socket.clogged:
            self._cut_off()
        elif not self._turns:
            self._turn()

    def _cut_off(self) -> None:
        if self._socket.clogged and not self.ended.done():
            self._socket.abort()
            self._finish(UNREAD)

    def _turn(self) -> None:
        """Whatever can be done now: the next message, or the end."""
        self._turns = False
        if self._waiting and not self.full:
            self.take(self._waiting.popleft())
        if not self._waiting:
            self._socket.read_on()
        clogged = self._socket.clogged
        if self._reason and not (self.computes or clogged or self.ended.done()):
            self._socket.tell(self._stream.last(self._reason))
            self._finish(self._reason)

    def _answered(self, line: bytes, ends: bool) -> None:
        self.computes = False
        if line:
            self._socket.tell(line)
        if ends:
            self._reason = self._reason or DONE
        if self._stream.faults >= MOST_FAULTS:
            self._reason = self._reason or FAULTY
        if self._waiting or self._reason or self._socket.buffered:
            # Not now: many in a row may be answered without a moment for others.
            self._turns = True
            self._loop.call_soon(self._turn)

    def _finish(self, reason: str) -> None:
        if not self.ended.done():
            self._waiting.clear()
            self.ended.set_result(reason)
            if reason != GONE:
                self._socket.read_on()
