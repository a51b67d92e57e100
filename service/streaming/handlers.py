"""Stream handlers: they pass messages between a client and its stream.

`AsgiStreamHandler` works over ASGI, `SocketStreamHandler` on our own WebSocket without it.
Both end a stream by telling the client why, with a token to resume from.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from service.http.websocket import WebSocket
from service.streaming.stream import Message, Stream

# Why a stream ended, besides `RETIRED`. The last line has it or one of the first five.
DONE, IDLE, AGED, STOPPING, FAULTY = "done", "idle", "aged", "stopping", "faulty"
GONE, UNREAD = "gone", "unread"
END_SECONDS = 1.0  # for the client to read the last line
MAX_CLIENT_ERRORS = 100  # messages in a row

Begin = Callable[[], Awaitable[None]]
# The next message; None after the last.
Receive = Callable[[], Awaitable[Message | None]]
Send = Callable[[bytes], Awaitable[None]]


class AsgiStreamHandler:
    """Runs a stream in the request's own task."""

    def __init__(self, stream: Stream, begin: Begin, receive: Receive, send: Send):
        self._stream, self._begin = stream, begin
        self._receive, self._send = receive, send
        self._reason = ""  # why it must end
        self._receiving = self._sending = False
        self._task: asyncio.Task[object] | None = None
        stream.end = self.end

    async def run(self) -> str:
        """Answer messages until the stream ends, and return why.

        Raises:
            Exception: what `begin`, `receive` and `send` raise.
        """
        self._task = asyncio.current_task()
        try:
            await self._answer_all()
        except asyncio.CancelledError:
            # By `end`; otherwise the task must end.
            if not self._reason or self._task is None or self._task.uncancel():
                raise
        finally:
            self._task = None
        if self._sending:
            return UNREAD
        reason = self._reason or DONE
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._send(self._stream.last_line(reason))
        except TimeoutError:
            return UNREAD
        return reason

    def stop(self) -> None:
        """The service stops."""
        self.end(STOPPING)

    def end(self, reason: str) -> None:
        """End the stream: at once if it waits, somewhat later if the client still has to
        read, otherwise after the current answer."""
        self._reason = self._reason or reason
        if self._sending and reason != IDLE:
            asyncio.get_running_loop().call_later(END_SECONDS, self._cancel)
        elif self._receiving or self._sending:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None and (self._receiving or self._sending):
            self._receiving = False  # cancels only once
            self._task.cancel()

    async def _answer_all(self) -> None:
        await self._await_client(self._begin())
        while not self._reason:
            self._receiving = True
            message = await self._receive()
            self._receiving = False
            if message is None:
                return
            line, ends = await self._stream.answer(message)
            if line:
                await self._await_client(self._send(line))
            if ends:
                return
            if self._stream.client_errors >= MAX_CLIENT_ERRORS:
                self._reason = self._reason or FAULTY
            if self._stream.client_errors:
                await asyncio.sleep(0)  # errors may be answered without any pause

    async def _await_client(self, sending: Awaitable[None]) -> None:
        self._sending = True
        await sending
        self._sending = False


class SocketStreamHandler:
    """Runs a stream by callbacks of its WebSocket.

    While a message is computed, and while the client does not read, further messages stay
    in the socket, which stops reading.
    """

    def __init__(self, stream: Stream, socket: WebSocket):
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.busy = False
        self._stream, self._socket = stream, socket
        self._early: deque[bytes] = deque()  # messages from before the handler
        self._scheduled = False  # a call of `_next`
        self._reason = ""  # why it must end
        stream.end = self.end

    @property
    def full(self) -> bool:
        """No message can be taken now."""
        waits = self.busy or self._scheduled or self._socket.write_paused
        return waits or bool(self._reason)

    def take(self, message: bytes) -> None:
        """Handle a message."""
        if self.ended.done():
            return
        if self.full:
            self._early.append(message)
        else:
            self.busy = True
            self._stream.take(message, self._answered)

    def resume(self) -> None:
        """The client has read what was written."""
        if not self._scheduled:
            self._next()

    def disconnect(self) -> None:
        """The client has gone."""
        self._finish(GONE)

    def stop(self) -> None:
        """The service stops."""
        self.end(STOPPING)

    def end(self, reason: str) -> None:
        """End the stream; see `AsgiStreamHandler.end`."""
        self._reason = self._reason or reason
        if self._socket.write_paused and reason != IDLE:
            self._loop.call_later(END_SECONDS, self._abort_if_unread)
        elif self._socket.write_paused:
            self._abort_if_unread()
        elif not self._scheduled:
            self._next()

    def _abort_if_unread(self) -> None:
        if self._socket.write_paused and not self.ended.done():
            self._socket.abort()
            self._finish(UNREAD)

    def _next(self) -> None:
        """Take the next message, or end the stream."""
        self._scheduled = False
        if self._early and not self.full:
            self.take(self._early.popleft())
        if not self._early:
            self._socket.read_more()
        waits = self.busy or self._socket.write_paused
        if self._reason and not (waits or self.ended.done()):
            self._socket.send_text(self._stream.last_line(self._reason))
            self._finish(self._reason)

    def _answered(self, line: bytes, ends: bool) -> None:
        self.busy = False
        if line:
            self._socket.send_text(line)
        if ends:
            self._reason = self._reason or DONE
        if self._stream.client_errors >= MAX_CLIENT_ERRORS:
            self._reason = self._reason or FAULTY
        if self._early or self._reason or self._socket.buffered:
            # In the next turn of the loop: many messages in a row may be answered at
            # once, and would leave no time for others.
            self._scheduled = True
            self._loop.call_soon(self._next)

    def _finish(self, reason: str) -> None:
        if not self.ended.done():
            self._early.clear()
            self.ended.set_result(reason)
            if reason != GONE:
                self._socket.read_more()
