"""An HTTP connection: uvicorn's, with few writes, with limits, and a sure end.

uvicorn waits for ever for a request that does not come on, and takes a head of any
size; and it writes head and body of an answer apart: two system calls, and a client
that is woken twice. Here a head and a body have their time, a head its size, and an
answer that is not read an end (RFC 9110, 15.5.9; RFC 6585, 5).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import errors
from service.callers.memory_budget import ACCOUNT, Reservation
from service.callers.request_pacing import PacedConnection
from service.errors import ServiceError
from service.http.alarm import Alarm
from service.http.heads import HOST, without_h2c
from service.http.limits import ConnectionLimiter
from service.http.transport import CoalescingTransport, SlowReaderGuard

log = logging.getLogger(__name__)

CONNECTION = "unrolled.connection"  # ASGI extension: the `Connection`
HEAD, BODY, WHOLE = "head", "body", "whole"  # how far a request is
# What is still sent after an answer is read and thrown away, up to these limits: a
# close on unread bytes is a reset, and the client may lose the answer.
LINGER_SECONDS, SILENT_SECONDS, LINGER_BYTES = 30.0, 5.0, 64 * 2**20
EVICTED_BYTES = 2**20  # the same of one that was evicted: there is no time for more
MAX_PIPELINED = 2  # requests that wait for the answer to an earlier one
PIPELINED_BYTES = 4096  # that each of them takes besides its head
STOP_SECONDS = 2.0  # for the rest of a request, when the service stops


class _Enough(Exception):
    """Stops the parser: nothing more is heard."""


class Connection(HttpToolsProtocol):
    """One client's, from its first byte to its last."""

    def __init__(self, *args: Any, limiter: ConnectionLimiter, **named: Any):
        super().__init__(*args, **named)
        self._limiter = limiter
        self._part = WHOLE
        self._head_bytes = 0  # of the head that comes, as far as it was parsed
        self._blind_bytes = 0  # as far as it came
        self._body_came = False  # among what was parsed last
        self._hosts = 0
        self._begun = 0  # requests
        self._deaf = self._patient = self._stopping = self._lingers = False
        self._discarded, self._discards_until = 0, 0.0
        self._linger_bytes = LINGER_BYTES
        self._alarm = Alarm(self.loop, self._late)
        self.account = limiter.budget.account(self.evict)
        self._reservation = Reservation(self.account)  # of the request that comes
        self._pacing = PacedConnection(limiter.pacer, self.account, self._receive)
        self._reservations: deque[Reservation] = (
            deque()
        )  # of those without an answer, in order
        self.lost: Callable[[], None] | None = None  # called when the client goes

    def abort(self) -> None:
        self.transport.abort()

    def wait(self) -> None:
        """This request's body may take any time: it is a stream."""
        self._patient = True
        self._alarm.clear()
        self._limiter.mark_active(self)

    def make_room(self) -> None:
        self.transport.abort()  # over TLS a close would wait for the other side's

    def evict(self) -> bool:
        """Closes the connection where it waits for its client; returns whether it did."""
        comes = self._part is not WHOLE and not self._answered
        if not (comes or self.flow.write_paused):
            return False
        if comes and not (self._patient or self._deaf or len(self._reservations) > 1):
            told = "too many bytes are held for requests"
            self._linger_bytes = EVICTED_BYTES
            self._refuse(errors.BufferFull(told, headers={"Retry-After": "1"}))
        else:
            self.transport.abort()
        return True

    def shutdown(self) -> None:
        under_way = self._part is BODY and not (self._answered or self._patient)
        if self._lingers or (self._part is BODY and self._answered):
            self.transport.abort()
        elif under_way or self._pacing.data or self._part is HEAD or not self._begun:
            self._stopping = True  # a moment for what is about to come
            if under_way:
                self.cycle.keep_alive = False
            self._alarm.set(STOP_SECONDS)
        else:
            super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathered = CoalescingTransport(transport, self.account, self._linger)
        super().connection_made(self._gathered)
        self._reading = SlowReaderGuard(transport, self.account)
        if not self._limiter.has_room(len(self.connections)):
            self._refuse(errors.TooManyConnections("too many connections are open"))
            return
        # Who has shaken hands over TLS has done more than to come.
        self._limiter.mark_idle(self, new=self.scheme == "http")
        self._alarm.set(self._limiter.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.account.close()
        self._detach()
        if self.lost is not None:
            self.lost()

    def _detach(self) -> None:
        """Let go of all that leads back here, so that what this holds is freed now and
        not when the garbage collector comes to it."""
        self._limiter.mark_active(self)
        self._alarm.close()
        self._reading.goes_on()
        self._unset_keepalive_if_required()
        self._gathered.lingers = _never
        self._pacing.close()
        self.pipeline.clear()
        while self._reservations:
            self._reservations.popleft().release()
        self.parser = self.cycle = self.scope = self.headers = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._deaf or (self._part is BODY and not self._pacing.data):
            self._receive(data)
        else:
            self._pacing.feed(data, self.transport)

    def _receive(self, data: bytes) -> None:
        if self._deaf:
            self._discard(len(data))
            return
        if self._part is not BODY:
            data = without_h2c(data)
        if self._shed(data):
            return
        # They are of a head whose end is perhaps not among them, or of trailers.
        size, heads = len(data), self._begun
        self._body_came = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError as error:
            if not isinstance(error.__context__, _EXPECTED):
                log.error("a callback of the parser failed", exc_info=error)
            self.send_400_response("")
        if self._body_came:
            self._blind_bytes = size = 0
        self._watch(size if self._begun <= heads + 1 else 0)

    def _shed(self, data: bytes) -> bool:
        """Whether that was a request which is answered already."""
        idle = self._part is WHOLE and self._answered and not self.flow.write_paused
        if not idle or self._limiter.draining:
            return False
        answer = self._limiter.shed(data, self.account.number)
        if answer is None:
            return False
        self._unset_keepalive_if_required()
        self._limiter.mark_active(self)
        self._limiter.mark_idle(self)
        self._alarm.set(self._limiter.idle_seconds)
        self.transport.write(answer)
        return True

    def _watch(self, size: int) -> None:
        """Limits, after so many bytes of a head, if its end was not among them, or
        behind a body's last chunk: of trailers, or of a chunk's extension."""
        limiter = self._limiter
        if self._deaf:
            return
        if self._part is not WHOLE:
            self._blind_bytes += size
        if max(self._blind_bytes, self._head_bytes) > limiter.head_bytes:
            self._refuse(limiter.too_long())
        elif self._alarm.is_set or self._patient:
            return
        elif self._part is BODY:
            self._alarm.set(limiter.body_seconds)
        elif self._part is HEAD or self._answered:
            self._alarm.set(limiter.head_seconds)

    def on_message_begin(self) -> None:
        if self._deaf:
            raise _Enough
        super().on_message_begin()
        self._alarm.clear()
        self._part, self._patient = HEAD, False
        self._begun += 1
        self._head_bytes = self._blind_bytes = self._hosts = 0
        extensions: dict[str, Any] = {CONNECTION: self, ACCOUNT: self.account}
        self.scope["extensions"] = extensions
        self._reservation = self.scope["state"]["reservation"] = Reservation(
            self.account
        )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._part is not HEAD:
            return  # a trailer is no header
        name = name.lower()
        if name == b"host":
            self._hosts += 1 if HOST.fullmatch(value) else 2
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._head_bytes += len(self.url)
        version = self.parser.get_http_version()
        size, fields = self._head_bytes, len(self.headers)
        fault = self._limiter.fault(size, fields, self._hosts, version)
        if fault is not None:
            self._refuse(fault)
            return
        if not self._answered:
            if len(self._reservations) > MAX_PIPELINED:
                self._deaf = True
                self.cycle.keep_alive = False  # of the last that is answered
                raise _Enough
            size += PIPELINED_BYTES
        self._part, self._body_came = BODY, True
        self._blind_bytes = 0
        self._alarm.clear()
        if not self._holds_more(size):
            return
        self._reservations.append(self._reservation)
        super().on_headers_complete()
        if self._limiter.draining and not self._answered:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_came = True
        if self._deaf:
            return
        if self._answered:
            self._discard(len(body))
        elif self._holds_more(len(body)):
            super().on_body(body)

    def _holds_more(self, size: int) -> bool:
        """Whether there is room for more bytes of the request; else it is refused."""
        try:
            self._reservation.resize(self._reservation.size + size)
        except errors.BufferFull as error:
            if not self._deaf:  # by its own eviction
                self._refuse(error)
        return not self._deaf

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        self._part = WHOLE
        self._alarm.clear()
        self._limiter.mark_active(self)
        super().on_message_complete()
        if self._answered:  # before it was whole
            self._limiter.mark_idle(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._reservations:
            self._reservations.popleft().release()
        if self._reservations or self.transport.is_closing():
            return
        if self._deaf:  # what came after can't be understood
            if not self._lingers:
                self.transport.close()
            return
        self._limiter.mark_idle(self)
        if self._part is BODY:
            self._begin_to_discard()

    def _begin_to_discard(self) -> None:
        self._discarded = 0
        self._discards_until = self.loop.time() + LINGER_SECONDS
        self._alarm.set(SILENT_SECONDS)
        self.flow.resume_reading()

    def _discard(self, size: int) -> None:
        """Throw away what comes behind an answer, within limits."""
        if self._deaf and not self._lingers:
            self.flow.pause_reading()  # until what came before is answered
            return
        self._discarded += size
        late = self.loop.time() > self._discards_until
        if late or self._discarded > self._linger_bytes:
            self.transport.abort()
        else:
            self._alarm.set(SILENT_SECONDS)

    def _linger(self) -> bool:
        """Called before the connection is closed: whether its client still sends, so
        that what it was told can be lost (RFC 9112, 9.6). It is closed later then."""
        if self._lingers or (self._part is not BODY and not self._deaf):
            return False
        self._deaf = self._lingers = True
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()
        self._limiter.mark_lingering(self)
        self._begin_to_discard()
        return True

    def handle_websocket_upgrade(self) -> None:
        if self._deaf:
            return
        self._deaf = True
        if not self._answered:
            # Sent behind a request that has no answer yet, which would never hear of
            # its connection again.
            self.cycle.keep_alive = False
            return
        super().handle_websocket_upgrade()
        self._detach()

    def send_400_response(self, msg: str) -> None:
        if not self._deaf:  # it has been refused already
            self._refuse(errors.MalformedHttp("the request is no HTTP/1.1"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.stopped(patient=self._patient)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.goes_on()

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        if self._deaf or (self._part is BODY and self._answered):
            self.transport.abort()
        elif self._part is WHOLE:
            self.transport.close()  # nothing was asked
        elif self._stopping:
            self._refuse(errors.Stopping("the service is stopping"))
        else:
            late = f"the request's {self._part} did not come in time"
            self._refuse(errors.RequestTimeout(late))

    def _refuse(self, error: ServiceError) -> None:
        """Answer below the application, and hear nothing more."""
        self._deaf = True
        self._limiter.mark_active(self)
        if not self._answered:
            if self._part is not BODY or self.cycle.scope is not self.scope:
                return  # behind another request, whose answer comes first
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if len(self._reservations) > 1:  # others are answered first
                self.pipeline.popleft()
                self._reservations.pop().release()
                return
            self._reservations.popleft().release()
            self.scope["state"]["refused"] = error.status
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(self._limiter.refusal(error))
        self.transport.close()


_EXPECTED = (_Enough, httptools.HttpParserError, type(None))


def _never() -> bool:
    return False
