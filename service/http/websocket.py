"""WebSocket connections: uvicorn's protocol, with a fast path for a stream's messages.

Handshake, pings, fragments, limits and the close are left to uvicorn and the `websockets`
library. A plain message is unmasked and handled right here, and so is its answer. Through
the library's parser, queue, task and ASGI, it costs a quarter more CPU and is answered
later.
"""

import asyncio
import random
from collections.abc import Iterable
from typing import Any, Protocol

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)
from websockets.exceptions import InvalidState
from websockets.frames import (  # type: ignore[attr-defined]
    CloseCode,
    Frame,
    apply_mask,
)
from websockets.http11 import Request

from service.callers.memory_budget import ACCOUNT, Account, Reservation
from service.errors import MEDIA_TYPE, BadHandshake, BufferFull
from service.http.transport import (
    CoalescingTransport,
    LingeringTransport,
    SlowReaderGuard,
)

WEBSOCKET = "unrolled.websocket"  # ASGI extension: the `WebSocket`
FIN, MASKED, SIZE = 0x80, 0x80, 0x7F  # of RFC 6455, section 5.2
CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
OPCODE, CONTROL = 0x0F, 0x8
MAX_FRAGMENTS = 1024
PLAIN = frozenset({FIN | TEXT, FIN | BINARY})  # unfragmented, without extensions


class MessageHandler(Protocol):
    """Takes the messages of a WebSocket without ASGI."""

    ended: asyncio.Future[str]
    busy: bool  # with a message whose answer is not written

    @property
    def full(self) -> bool:
        """No message can be taken now."""
        ...

    def take(self, message: bytes) -> None:
        """Handle a message."""
        ...

    def resume(self) -> None:
        """The client has read what was written."""
        ...

    def disconnect(self) -> None:
        """The client has gone."""
        ...

    def stop(self) -> None:
        """The service stops: end when the last message is answered."""
        ...


class WebSocket(WebSocketsSansIOProtocol):
    """A client's WebSocket."""

    account: Account
    write_paused = False  # the client has much left to read
    sent_bytes = 0
    _handler: MessageHandler | None = None
    _library_only = False  # hand all further input to the library
    _fragments = 0  # so far, of a fragmented message
    _fragment_bytes = 0
    _needed = 2  # bytes, until a frame can be complete

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._buffer = bytearray()  # received, and not handled yet

    def attach(self, handler: MessageHandler) -> None:
        """Hand all messages to the handler from now on."""
        self._handler = handler
        while not self.queue.empty():
            message = self.queue.get_nowait()
            if message["type"] == "websocket.receive":
                text = message.get("text")
                data = message["bytes"] if text is None else text.encode()
                handler.take(data or b"")
            else:
                handler.disconnect()
        self.read_more()

    def send_text(self, line: bytes) -> None:
        """Write a text message."""
        if not (self.close_sent or self.transport.is_closing()):
            self.sent_bytes += len(line)
            self.transport.write(b"".join((_frame_header(len(line)), line)))

    @property
    def buffered(self) -> bool:
        """Received input waits to be handled."""
        return bool(self._buffer)

    def read_more(self) -> None:
        """Handle what is buffered, and read more if there is room for it."""
        if self._handler is None:  # the connection was lost in the meantime
            return
        if self._buffer:
            buffer, self._buffer = self._buffer, bytearray()
            self._parse(buffer)
        self._update_reading()

    def abort(self) -> None:
        self.transport.abort()

    def evict(self) -> bool:
        """Close the connection if it waits for its client; return whether it does."""
        if self._handler is not None and self._handler.busy and not self.write_paused:
            return False
        self.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        if self._handler is None:
            super().data_received(data)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse("the request is not a WebSocket handshake")
            return
        if not self._buffer:
            self._parse(data)
        else:
            self._buffer += data  # to copy it all for each part would be quadratic
            if len(self._buffer) >= self._needed:
                self.read_more()
                return
        self._update_reading()

    def _update_reading(self) -> None:
        """Count what is buffered, and pause reading while it can't be handled."""
        handler = self._handler
        assert handler is not None
        try:
            self._reservation.resize(len(self._buffer) + self._fragment_bytes)
        except BufferFull as error:
            self._fail(CloseCode.TRY_AGAIN_LATER, error.detail)
        blocked = self.write_paused or (handler.full and bool(self._buffer))
        pause = blocked and not handler.ended.done()
        if pause is not self.read_paused and not self.transport.is_closing():
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _parse(self, data: bytes | bytearray) -> None:
        """Handle complete frames while the handler has room, and buffer the rest."""
        handler = self._handler
        assert handler is not None
        start, end = 0, len(data)
        self._needed = 2
        while end > start:
            if self._library_only or handler.ended.done():
                super().data_received(bytes(data[start:]))
                return
            if end - start < 2:
                break
            # A close frame is handled even while a message before it is computed.
            control = data[start] & OPCODE >= CONTROL
            if handler.full and (self.write_paused or not control):
                break
            first, size, header = data[start], data[start + 1] & SIZE, 2
            if size > 125:
                header = 4 if size == 126 else 10
                if end - start < header:
                    self._needed = header
                    break
                size = int.from_bytes(data[start + 2 : start + header])
            if not data[start + 1] & MASKED or size > self.config.ws_max_size:
                self._library_only = True
                continue
            stop = start + header + 4 + size
            if stop > end:
                self._needed = stop - start
                break
            if first in PLAIN and not self._fragments:
                mask = data[start + header : start + header + 4]
                payload = apply_mask(data[start + header + 4 : stop], mask)
                self._take(first, payload)
            else:
                self._hand_to_library(first, bytes(data[start:stop]))
            if self.close_sent or self.transport.is_closing():
                return
            start = stop
        if start < end:
            self._buffer += data[start:]

    def _take(self, first: int, message: bytes) -> None:
        if first == FIN | TEXT and not message.isascii():
            try:
                message.decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "the text is not UTF-8")
                return
        assert self._handler is not None
        self._handler.take(message)

    def _fail(self, code: CloseCode, reason: str) -> None:
        self._library_only = True
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _hand_to_library(self, first: int, frame: bytes) -> None:
        """Let the library handle a control frame, or a part of a fragmented message."""
        if first & ~FIN in (TEXT, BINARY, CONTINUATION):
            self._fragments = 0 if first & FIN else self._fragments + 1
            self._fragment_bytes += len(frame)
            if not self._fragments:
                self._fragment_bytes = 0
        if self._fragments > MAX_FRAGMENTS:  # each costs memory, whatever its size
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return
        super().data_received(frame)

    # Callbacks of uvicorn and of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, CoalescingTransport)
        # A stream rarely writes twice in a turn: coalescing would only cost time.
        transport.flush()
        self.account = transport.account
        self.account.evict = self.evict
        self._reservation = Reservation(self.account)
        self._slow_reader = SlowReaderGuard(transport.wrapped, self.account)
        super().connection_made(LingeringTransport(transport.wrapped, self.account))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.account.close()
        self._slow_reader.cancel()
        if self._handler is not None:
            self._handler.disconnect()
            self._handler = None
        # Drops references that lead back here: memory is freed now, and not at the next
        # garbage collection.
        self._buffer.clear()
        self.conn.parser.close()
        self.conn.events.clear()
        for error in (self.conn.handshake_exc, self.conn.parser_exc):
            if error is not None:  # refers to the frames that it passed through
                error.__traceback__ = error.__context__ = error.__cause__ = None
        self.scope = self.request = self.response = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused = True
        self._slow_reader.writing_paused(streaming=True)
        if self._handler is not None:
            self._update_reading()  # answers to pings fill the buffer too

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused = False
        self._slow_reader.writing_resumed()
        if self._handler is not None:
            self._handler.resume()

    def send_receive_event_to_app(self) -> None:
        if self._handler is None:
            super().send_receive_event_to_app()
        else:
            frames, self.frames = self.frames, []
            kind = TEXT if self.curr_msg_data_type == "text" else BINARY
            self._take(FIN | kind, b"".join(frames))

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        if self._handler is not None:
            self._handler.disconnect()

    def handle_connect(self, event: Request) -> None:
        response = self.conn.accept(event)
        if response.status_code == 101:
            super().handle_connect(event)
        else:
            kept = ("upgrade", "sec-websocket-version")
            headers = [(k, v) for k, v in response.headers.items() if k.lower() in kept]
            self._refuse("the request is not a WebSocket handshake", headers)

    def _refuse(self, detail: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Refuse a handshake. The library's own message would quote the client's input."""
        error = BadHandshake(detail)
        body = error.body(f"{random.getrandbits(64):016x}")
        head = [f"HTTP/1.1 {error.status} Bad Request", f"Content-Type: {MEDIA_TYPE}"]
        head += [f"Content-Length: {len(body)}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in headers]
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    def shutdown(self) -> None:
        if self._handler is not None and not self._handler.ended.done():
            self._handler.stop()  # when it has answered
            return
        try:
            super().shutdown()
        except (AssertionError, InvalidState):  # half a handshake, or closing already
            self.transport.abort()

    async def run_asgi(self) -> None:
        scope: Any = self.scope
        if scope is None:  # lost before it began
            return
        extensions: dict[str, Any] = scope["extensions"]
        extensions |= {WEBSOCKET: self, ACCOUNT: self.account}
        await super().run_asgi()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # otherwise it logs an error


def _frame_header(size: int) -> bytes:
    """Of an unfragmented text message."""
    if size < 126:
        return bytes((FIN | TEXT, size))
    if size < 1 << 16:
        return bytes((FIN | TEXT, 126)) + size.to_bytes(2)
    return bytes((FIN | TEXT, 127)) + size.to_bytes(8)
