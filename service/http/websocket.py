"""WebSockets: uvicorn's, and a way past ASGI for the messages of a stream.

Handshake, pings, fragments, limits and the close are uvicorn's and the library's
`websockets`. A plain message is unmasked and handed on right here, and its answer
written: through the library's own reading, queue, task and ASGI it takes a quarter
more of the processor and is answered later.
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

DIRECT = "unrolled.direct"  # ASGI extension: `WebSocket.listen` past ASGI
FIN, MASKED, SIZE = 0x80, 0x80, 0x7F  # of RFC 6455, section 5.2
CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
OPCODE, CONTROL = 0x0F, 0x8
MOST_FRAGMENTS = 1024
PLAIN = frozenset({FIN | TEXT, FIN | BINARY})  # whole, and without extensions


class MessageHandler(Protocol):
    """What takes the messages of a connection past ASGI."""

    ended: asyncio.Future[str]
    computes: bool  # a message, whose answer is not written

    @property
    def full(self) -> bool:
        """No message can be taken now."""
        ...

    def take(self, message: bytes) -> None:
        """A message has come."""
        ...

    def freed(self) -> None:
        """What was told has been read."""
        ...

    def lost(self) -> None:
        """The client has gone."""
        ...

    def stop(self) -> None:
        """The service stops: end, when the last message is answered."""
        ...


class WebSocket(WebSocketsSansIOProtocol):
    """A connection."""

    account: Account
    clogged = False
    told_bytes = 0
    _talk: MessageHandler | None = None
    _foreign = False  # the library hears all that comes from now on
    _fragments = 0  # so far, of a message in several
    _fragment_bytes = 0
    _needed = 2  # bytes, until a frame can be whole

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self._buffer = bytearray()  # what can't be handed on yet

    def listen(self, talk: MessageHandler) -> None:
        """Hand all messages to `talk` from now on."""
        self._talk = talk
        while not self.queue.empty():
            message = self.queue.get_nowait()
            if message["type"] == "websocket.receive":
                text = message.get("text")
                data = message["bytes"] if text is None else text.encode()
                talk.take(data or b"")
            else:
                talk.lost()
        self.read_on()

    def tell(self, line: bytes) -> None:
        """Write a text message."""
        if not (self.close_sent or self.transport.is_closing()):
            self.told_bytes += len(line)
            self.transport.write(b"".join((_head(len(line)), line)))

    @property
    def buffered(self) -> bool:
        """Something has come and was not handed on."""
        return bool(self._buffer)

    def read_on(self) -> None:
        """Hand on what has come, and read more where there is room for it."""
        if self._talk is None:  # the connection was lost before this turn came
            return
        if self._buffer:
            buffer, self._buffer = self._buffer, bytearray()
            self._hear(buffer)
        self._count()

    def abort(self) -> None:
        self.transport.abort()

    def evict(self) -> bool:
        """Closes the connection where it waits for its client; returns whether it did."""
        if self._talk is not None and self._talk.computes and not self.clogged:
            return False
        self.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        if self._talk is None:
            super().data_received(data)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse("the request is no handshake of a WebSocket")
            return
        if not self._buffer:
            self._hear(data)
        else:
            self._buffer += data  # a copy of it all for each part would be quadratic
            if len(self._buffer) >= self._needed:
                self.read_on()
                return
        self._count()

    def _count(self) -> None:
        """Have what is buffered counted, and pause where more can't be handed on."""
        talk = self._talk
        assert talk is not None
        try:
            self._reservation.resize(len(self._buffer) + self._fragment_bytes)
        except BufferFull as error:
            self._fail(CloseCode.TRY_AGAIN_LATER, error.detail)
        ended = talk.ended.done()
        pause = not ended and (self.clogged or (talk.full and bool(self._buffer)))
        if pause is not self.read_paused and not self.transport.is_closing():
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _hear(self, data: bytes | bytearray) -> None:
        """Hand on the frames that are whole, as long as there is room; keep the rest."""
        talk = self._talk
        assert talk is not None
        start, end = 0, len(data)
        self._needed = 2
        while end > start:
            if self._foreign or talk.ended.done():
                super().data_received(bytes(data[start:]))
                return
            if end - start < 2:
                break
            # A close is heard also while a message before it is computed.
            if talk.full and (self.clogged or data[start] & OPCODE < CONTROL):
                break
            first, size, head = data[start], data[start + 1] & SIZE, 2
            if size > 125:
                head = 4 if size == 126 else 10
                if end - start < head:
                    self._needed = head
                    break
                size = int.from_bytes(data[start + 2 : start + head])
            if not data[start + 1] & MASKED or size > self.config.ws_max_size:
                self._foreign = True
                continue
            stop = start + head + 4 + size
            if stop > end:
                self._needed = stop - start
                break
            if first in PLAIN and not self._fragments:
                mask = data[start + head : start + head + 4]
                self._take(first, apply_mask(data[start + head + 4 : stop], mask))
            else:
                self._leave(first, bytes(data[start:stop]))
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
                self._fail(CloseCode.INVALID_DATA, "no UTF-8")
                return
        assert self._talk is not None
        self._talk.take(message)

    def _fail(self, code: CloseCode, reason: str) -> None:
        self._foreign = True
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _leave(self, first: int, frame: bytes) -> None:
        """A frame that is for the library."""
        if first & ~FIN in (TEXT, BINARY, CONTINUATION):
            self._fragments = 0 if first & FIN else self._fragments + 1
            self._fragment_bytes += len(frame)
            if not self._fragments:
                self._fragment_bytes = 0
        if self._fragments > MOST_FRAGMENTS:  # each costs memory, whatever its size
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return
        super().data_received(frame)

    # What uvicorn's calls, or is called for.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, CoalescingTransport)
        # Of a stream's writes there is rarely more than one to gather.
        transport.flush()
        self.account = transport.account
        self.account.evict = self.evict
        self._reservation = Reservation(self.account)
        self._reading = SlowReaderGuard(transport.plain, self.account)
        super().connection_made(LingeringTransport(transport.plain, self.account))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.account.close()
        self._reading.cancel()
        if self._talk is not None:
            self._talk.lost()
            self._talk = None
        # What leads back here: freed now, and not when the garbage collector comes.
        self._buffer.clear()
        self.conn.parser.close()
        self.conn.events.clear()
        for error in (self.conn.handshake_exc, self.conn.parser_exc):
            if error is not None:  # leads to the frames that it passed through
                error.__traceback__ = error.__context__ = error.__cause__ = None
        self.scope = self.request = self.response = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        self.clogged = True
        self._reading.stopped(patient=True)
        if self._talk is not None:
            self._count()  # the pings of one who doesn't read are answered, too

    def resume_writing(self) -> None:
        super().resume_writing()
        self.clogged = False
        self._reading.goes_on()
        if self._talk is not None:
            self._talk.freed()

    def send_receive_event_to_app(self) -> None:
        if self._talk is None:
            super().send_receive_event_to_app()
        else:
            frames, self.frames = self.frames, []
            kind = TEXT if self.curr_msg_data_type == "text" else BINARY
            self._take(FIN | kind, b"".join(frames))

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        if self._talk is not None:
            self._talk.lost()

    def handle_connect(self, event: Request) -> None:
        response = self.conn.accept(event)
        if response.status_code == 101:
            super().handle_connect(event)
        else:
            kept = ("upgrade", "sec-websocket-version")
            headers = [(k, v) for k, v in response.headers.items() if k.lower() in kept]
            self._refuse("the request is no handshake of a WebSocket", headers)

    def _refuse(self, detail: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """What the library would refuse in words that hold the caller's own."""
        error = BadHandshake(detail)
        body = error.body(f"{random.getrandbits(64):016x}")
        head = [f"HTTP/1.1 {error.status} Bad Request", f"Content-Type: {MEDIA_TYPE}"]
        head += [f"Content-Length: {len(body)}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in headers]
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    def shutdown(self) -> None:
        if self._talk is not None and not self._talk.ended.done():
            self._talk.stop()  # when it has answered
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
        extensions |= {DIRECT: self, ACCOUNT: self.account}
        await super().run_asgi()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # else it logs an error of the refusal


def _head(size: int) -> bytes:
    """Of a whole text message of so many bytes."""
    if size < 126:
        return bytes((FIN | TEXT, size))
    if size < 1 << 16:
        return bytes((FIN | TEXT, 126)) + size.to_bytes(2)
    return bytes((FIN | TEXT, 127)) + size.to_bytes(8)
