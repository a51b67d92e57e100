"""HTTP connections: uvicorn's protocol, with limits, fewer writes and a clean close.

uvicorn waits for ever for a request that stalls, and accepts a head of any size. It also
writes the head and the body of a response apart, which takes two system calls and wakes
the client twice. Here heads and bodies have timeouts, heads a size limit, and a response
that is not read is given up at some point (RFC 9110, 15.5.9; RFC 6585, 5).
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
from service.http.limits import HOST, ConnectionLimiter, without_h2c
from service.http.transport import CoalescingTransport, SlowReaderGuard

log = logging.getLogger(__name__)

CONNECTION = "unrolled.connection"  # ASGI extension: the `Connection`
HEAD, BODY, COMPLETE = "head", "body", "complete"  # how far a request has been received
# After a response, input is read and dropped within these limits: closing a connection
# with unread bytes resets it, and the client may lose the response.
LINGER_SECONDS, SILENT_SECONDS, LINGER_BYTES = 30.0, 5.0, 64 * 2**20
EVICTED_BYTES = 2**20  # the same for an evicted connection, which must go soon
MAX_PIPELINED = 2  # requests that wait for the response to an earlier one
PIPELINED_BYTES = 4096  # that each of them takes in memory, besides its head
STOP_SECONDS = 2.0  # for the rest of a request, when the service stops


class _InputIgnored(Exception):
    """Stops the parser: the rest of the input is not read."""


class Connection(HttpToolsProtocol):
    """A client's connection, from its first byte to its last."""

    def __init__(self, *args: Any, limiter: ConnectionLimiter, **options: Any):
        super().__init__(*args, **options)
        self._limiter = limiter
        self._phase = COMPLETE
        self._requests = 0  # begun
        self._head_bytes = 0  # of the current head, as far as it is parsed
        self._unparsed_bytes = 0  # received of it, or of trailers
        self._body_started = False  # within the input that was parsed last
        self._host_headers = 0
        self._ignores_input = self._lingering = False
        self._streaming = self._stopping = False
        self._discarded, self._discard_until = 0, 0.0
        self._linger_bytes = LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None
        self.account = limiter.budget.account(self.evict)
        self._reservation = Reservation(self.account)  # of the current request
        # Of requests without a response, in order:
        self._reservations: deque[Reservation] = deque()
        self._pacing = PacedConnection(limiter.pacer, self.account, self._receive)
        self.on_lost: Callable[[], None] | None = None  # called when the client goes

    def mark_streaming(self) -> None:
        """Let the body of this request take any time: it is a stream."""
        self._streaming = True
        self._stop_timer()
        self._limiter.mark_active(self)

    def make_room(self) -> None:
        """Close the connection, whose place another one needs."""
        self.transport.abort()  # over TLS, close() would wait for the client's

    def evict(self) -> bool:
        """Close the connection if it waits for its client; return whether it does."""
        receiving = self._phase is not COMPLETE and not self._responded
        if not (receiving or self.flow.write_paused):
            return False
        refusable = not (self._streaming or self._ignores_input)
        if receiving and refusable and len(self._reservations) <= 1:
            detail = "too many bytes are buffered for requests"
            self._linger_bytes = EVICTED_BYTES
            self._refuse(errors.BufferFull(detail, headers={"Retry-After": "1"}))
        else:
            self.transport.abort()
        return True

    def shutdown(self) -> None:
        """uvicorn calls it when the service stops."""
        in_body = self._phase is BODY
        receiving = in_body and not (self._responded or self._streaming)
        if self._lingering or (in_body and self._responded):
            self.transport.abort()
        elif (
            self._pacing.data or receiving or self._phase is HEAD or not self._requests
        ):
            self._stopping = True  # wait a moment for the rest of the request
            if receiving:
                self.cycle.keep_alive = False
            self._start_timer(STOP_SECONDS)
        else:
            super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._coalescing = CoalescingTransport(transport, self.account, self._linger)
        super().connection_made(self._coalescing)
        self._slow_reader = SlowReaderGuard(transport, self.account)
        if not self._limiter.has_room(len(self.connections)):
            self._refuse(errors.TooManyConnections("too many connections are open"))
            return
        # A TLS client has completed a handshake, which is more than to connect.
        self._limiter.mark_idle(self, new=self.scheme == "http")
        self._start_timer(self._limiter.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.account.close()
        self._detach()
        if self.on_lost is not None:
            self.on_lost()

    def _detach(self) -> None:
        """Drop every reference that leads back here, so that memory is freed now and not
        at the next garbage collection."""
        self._limiter.mark_active(self)
        self._stop_timer()
        self._slow_reader.writing_resumed()
        self._unset_keepalive_if_required()
        self._coalescing.defer_close = lambda: False
        self._pacing.close()
        self.pipeline.clear()
        while self._reservations:
            self._reservations.popleft().release()
        self.parser = self.cycle = self.scope = self.headers = None  # type: ignore[assignment]

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self._ignores_input or (self._phase is BODY and self._responded):
            self.transport.abort()
        elif self._phase is COMPLETE:
            self.transport.close()  # no request is under way
        elif self._stopping:
            self._refuse(errors.Stopping("the service is stopping"))
        else:
            detail = f"the request's {self._phase} did not arrive in time"
            self._refuse(errors.RequestTimeout(detail))

    def data_received(self, data: bytes) -> None:
        in_body = self._phase is BODY and not self._pacing.data
        if self._ignores_input or in_body:
            self._receive(data)
        else:
            self._pacing.feed(data, self.transport)

    def _receive(self, data: bytes) -> None:
        if self._ignores_input:
            self._discard(len(data))
            return
        if self._phase is not BODY:
            data = without_h2c(data)
        if self._shed(data):
            return
        # Of a head whose end may be elsewhere, or of trailers.
        size, requests = len(data), self._requests
        self._body_started = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError as error:
            if not isinstance(error.__context__, _PARSER_ERRORS):
                log.error("a parser callback failed", exc_info=error)
            self.send_400_response("")
        if self._body_started:
            self._unparsed_bytes = size = 0
        self._check_progress(size if self._requests <= requests + 1 else 0)

    def _shed(self, data: bytes) -> bool:
        """Refuse a request without parsing it, if the load shedder does."""
        idle = self._phase is COMPLETE and self._responded
        if not idle or self.flow.write_paused or self._limiter.draining:
            return False
        response = self._limiter.shed(data, self.account.number)
        if response is None:
            return False
        self._unset_keepalive_if_required()
        self._limiter.mark_active(self)
        self._limiter.mark_idle(self)
        self._start_timer(self._limiter.idle_seconds)
        self.transport.write(response)
        return True

    def _check_progress(self, size: int) -> None:
        """Limit the size and the time of what is being received, after `size` bytes of an
        unfinished head, of trailers, or of a chunk extension."""
        limiter = self._limiter
        if self._ignores_input:
            return
        if self._phase is not COMPLETE:
            self._unparsed_bytes += size
        if max(self._unparsed_bytes, self._head_bytes) > limiter.max_head_bytes:
            self._refuse(limiter.head_too_large())
        elif self._timer is not None or self._streaming:
            return
        elif self._phase is BODY:
            self._start_timer(limiter.body_seconds)
        elif self._phase is HEAD or self._responded:
            self._start_timer(limiter.head_seconds)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._ignores_input:
            raise _InputIgnored
        super().on_message_begin()
        self._stop_timer()
        self._phase, self._streaming = HEAD, False
        self._requests += 1
        self._head_bytes = self._unparsed_bytes = self._host_headers = 0
        extensions: dict[str, Any] = {CONNECTION: self, ACCOUNT: self.account}
        self.scope["extensions"] = extensions
        reservation = Reservation(self.account)
        self._reservation = self.scope["state"]["reservation"] = reservation

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._phase is not HEAD:
            return  # a trailer, not a header
        name = name.lower()
        if name == b"host":
            self._host_headers += 1 if HOST.fullmatch(value) else 2
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._ignores_input:
            return
        self._head_bytes += len(self.url)
        version = self.parser.get_http_version()
        size, headers = self._head_bytes, len(self.headers)
        error = self._limiter.check_head(size, headers, self._host_headers, version)
        if error is not None:
            self._refuse(error)
            return
        if not self._responded:
            if len(self._reservations) > MAX_PIPELINED:
                self._ignores_input = True
                self.cycle.keep_alive = False  # of the last request with a response
                raise _InputIgnored
            size += PIPELINED_BYTES
        self._phase, self._body_started = BODY, True
        self._unparsed_bytes = 0
        self._stop_timer()
        if not self._reserve(size):
            return
        self._reservations.append(self._reservation)
        super().on_headers_complete()
        if self._limiter.draining and not self._responded:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_started = True
        if self._ignores_input:
            return
        if self._responded:
            self._discard(len(body))
        elif self._reserve(len(body)):
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._ignores_input:
            return
        self._phase = COMPLETE
        self._stop_timer()
        self._limiter.mark_active(self)
        super().on_message_complete()
        if self._responded:  # before the request was complete
            self._limiter.mark_idle(self)

    def _reserve(self, size: int) -> bool:
        """Make room for more bytes of the request; refuse it if there is none."""
        try:
            self._reservation.resize(self._reservation.size + size)
        except errors.BufferFull as error:
            if not self._ignores_input:  # it may have been evicted itself
                self._refuse(error)
        return not self._ignores_input

    # The end of a response, and of the connection.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._reservations:
            self._reservations.popleft().release()
        if self._reservations or self.transport.is_closing():
            return
        if self._ignores_input:  # what follows can't be parsed
            if not self._lingering:
                self.transport.close()
            return
        self._limiter.mark_idle(self)
        if self._phase is BODY:
            self._start_discarding()

    def _start_discarding(self) -> None:
        self._discarded = 0
        self._discard_until = self.loop.time() + LINGER_SECONDS
        self._start_timer(SILENT_SECONDS)
        self.flow.resume_reading()

    def _discard(self, size: int) -> None:
        """Drop input that follows a response, within limits."""
        if self._ignores_input and not self._lingering:
            self.flow.pause_reading()  # until earlier requests have their responses
            return
        self._discarded += size
        late = self.loop.time() > self._discard_until
        if late or self._discarded > self._linger_bytes:
            self.transport.abort()
        else:
            self._start_timer(SILENT_SECONDS)

    def _linger(self) -> bool:
        """Defer the close while the client still sends, since it could lose the response
        (RFC 9112, 9.6). Return whether it is deferred."""
        receiving = self._phase is BODY or self._ignores_input
        if self._lingering or not receiving:
            return False
        self._ignores_input = self._lingering = True
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()
        self._limiter.mark_lingering(self)
        self._start_discarding()
        return True

    def handle_websocket_upgrade(self) -> None:
        if self._ignores_input:
            return
        self._ignores_input = True
        if not self._responded:
            # Pipelined behind a request without a response, which would never learn of
            # a disconnect.
            self.cycle.keep_alive = False
            return
        super().handle_websocket_upgrade()
        self._detach()

    def send_400_response(self, msg: str) -> None:
        if not self._ignores_input:  # otherwise it has been refused already
            self._refuse(errors.MalformedHttp("the request is not valid HTTP/1.1"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader.writing_paused(streaming=self._streaming)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._slow_reader.writing_resumed()

    @property
    def _responded(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, error: ServiceError) -> None:
        """Respond below the application, and ignore all further input."""
        self._ignores_input = True
        self._limiter.mark_active(self)
        if not self._responded:
            if self._phase is not BODY or self.cycle.scope is not self.scope:
                return  # behind another request, whose response comes first
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if len(self._reservations) > 1:  # others get their responses first
                self.pipeline.popleft()
                self._reservations.pop().release()
                return
            self._reservations.popleft().release()
            self.scope["state"]["refused"] = error.status
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(self._limiter.error_response(error))
        self.transport.close()


_PARSER_ERRORS = (_InputIgnored, httptools.HttpParserError, type(None))
