"""An HTTP connection: uvicorn's, with few writes, with limits, and a sure end.

uvicorn waits for ever for a request that does not come on, and takes a head of any
size; and it writes head and body of an answer apart: two system calls, and a client
that is woken twice. Here a head and a body have their time, a head its size, and an
answer that is not read an end (RFC 9110, 15.5.9; RFC 6585, 5).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import errors
from .alarm import Alarm
from .crowd import Crowd
from .errors import ServiceError
from .gathered import Gathered, Reading
from .heads import HOST, without_h2c

CONNECTION = "unrolled.connection"  # ASGI extension: the `Connection`
HEAD, BODY, WHOLE = "head", "body", "whole"  # how far a request is
UNREAD_SECONDS = 5.0  # for the rest of a body that was answered without it
LINGER_SECONDS = 0.5  # for a client to read a refusal before it is cut off
STOP_SECONDS = 2.0  # for the rest of a request, when the service stops


class Connection(HttpToolsProtocol):
    """One client's, from its first byte to its last."""

    def __init__(self, *args: Any, crowd: Crowd, **named: Any):
        super().__init__(*args, **named)
        self._crowd = crowd
        self._part = WHOLE
        self._head_bytes = 0  # of the head that comes, as far as it was parsed
        self._blind_bytes = 0  # as far as it came
        self._hosts = 0
        self._begun = 0  # requests
        self._deaf = self._patient = self._stopping = False
        self._alarm = Alarm(self.loop, self._late)
        self.lost: Callable[[], None] | None = None  # called when the client goes

    def abort(self) -> None:
        self.transport.abort()

    def wait(self) -> None:
        """This request's body may take any time: it is a stream."""
        self._patient = True
        self._alarm.clear()
        self._crowd.heard(self)

    def make_room(self) -> None:
        self.transport.abort()  # over TLS a close would wait for the other side's

    def shutdown(self) -> None:
        under_way = self._part is BODY and not (self._answered or self._patient)
        if under_way or self._part is HEAD or not self._begun:
            self._stopping = True  # a moment for what is about to come
            if under_way:
                self.cycle.keep_alive = False
            self._alarm.set(STOP_SECONDS)
        else:
            super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathered = Gathered(transport)
        super().connection_made(self._gathered)
        self._reading = Reading(transport)
        if not self._crowd.has_room(len(self.connections)):
            self._refuse(errors.TooManyConnections("too many connections are open"))
            return
        self._crowd.awaits(self)
        self._alarm.set(self._crowd.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.heard(self)
        self._alarm.cancel()
        super().connection_lost(exc)
        if self.lost is not None:
            self.lost()

    def data_received(self, data: bytes) -> None:
        if self._part is not BODY:
            data = without_h2c(data)
        if not self._deaf and not self._shed(data):
            # Its first bytes are of a head, whose end is perhaps not among them.
            size, heads = len(data) if self._part is not BODY else 0, self._begun
            super().data_received(data)
            self._watch(size if self._begun <= heads + 1 else 0)

    def _shed(self, data: bytes) -> bool:
        """Whether that was a request which is answered already."""
        idle = self._part is WHOLE and self._answered and not self.flow.write_paused
        if not idle or self._crowd.draining:
            return False
        answer = self._crowd.shed(data)
        if answer is None:
            return False
        self._unset_keepalive_if_required()
        self._crowd.heard(self)
        self._crowd.awaits(self)
        self._alarm.set(self._crowd.idle_seconds)
        self.transport.write(answer)
        return True

    def _watch(self, size: int) -> None:
        """Limits, after so many bytes of a head, if its end was not among them."""
        crowd = self._crowd
        if self._deaf:
            return
        if self._part is HEAD:
            self._blind_bytes += size
        if max(self._blind_bytes, self._head_bytes) > crowd.head_bytes:
            self._refuse(crowd.too_long())
        elif self._alarm.is_set or self._patient:
            return
        elif self._part is BODY:
            self._alarm.set(crowd.body_seconds)
        elif self._part is HEAD or self._answered:
            self._alarm.set(crowd.head_seconds)

    def on_message_begin(self) -> None:
        if self._deaf:
            return
        super().on_message_begin()
        self._alarm.clear()
        self._part, self._patient = HEAD, False
        self._begun += 1
        self._head_bytes = self._blind_bytes = self._hosts = 0
        extensions: dict[str, Any] = {CONNECTION: self}
        self.scope["extensions"] = extensions

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
        fault = self._crowd.fault(size, fields, self._hosts, version)
        if fault is not None:
            self._refuse(fault)
            return
        self._part = BODY
        self._alarm.clear()
        super().on_headers_complete()
        if self._crowd.draining and not self._answered:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        self._part = WHOLE
        self._alarm.clear()
        self._crowd.heard(self)
        super().on_message_complete()
        if self._answered:  # before it was whole
            self._crowd.awaits(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline or self.transport.is_closing():
            return
        if self._deaf:  # what came after can't be understood
            self.transport.close()
            return
        self._crowd.awaits(self)
        if self._part is BODY:
            self._alarm.set(UNREAD_SECONDS)

    def handle_websocket_upgrade(self) -> None:
        if self._deaf:
            return
        self._deaf = True
        if not self._answered:
            # Sent behind a request that has no answer yet, which would never hear of
            # its connection again.
            self.cycle.keep_alive = False
            return
        self._alarm.clear()
        self._crowd.heard(self)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        if not self._deaf:  # it has been refused already
            self._refuse(errors.MalformedHttp("the request is no HTTP/1.1"))

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._patient:
            self._reading.stopped()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.goes_on()

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        if self._deaf:
            self.transport.abort()
        elif self._part is WHOLE or (self._part is BODY and self._answered):
            self.transport.close()  # nothing was asked
        elif self._stopping:
            self._refuse(errors.Stopping("the service is stopping"))
        else:
            late = f"the request's {self._part} did not come in time"
            self._refuse(errors.RequestTimeout(late))

    def _refuse(self, error: ServiceError) -> None:
        """Answer below the application, and hear nothing more."""
        self._deaf = True
        self._crowd.heard(self)
        if not self._answered:
            if self._part is not BODY or self.cycle.scope is not self.scope:
                return  # behind another request, whose answer comes first
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.pipeline:
                return
            self.scope["state"]["refused"] = error.status
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(self._crowd.refusal(error))
        # With bytes unread a close would be a reset, and the answer lost.
        self._gathered.flush()
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
            self._alarm.set(LINGER_SECONDS)
        else:
            self.transport.close()
