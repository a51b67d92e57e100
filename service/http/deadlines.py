"""Request deadlines and client-disconnect detection."""

import asyncio
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from service.errors import DeadlineExceeded, InvalidHeader
from service.http.connection import CONNECTION, Connection
from service.http.middleware import header

HEADER = "X-Request-Timeout-Ms"
MAX_MS = 86_400_000
CHECK_SECONDS = 0.02  # between checks of all requests
# Most responses are sent sooner. Watching for a disconnect through ASGI costs as much as
# a response, so it starts only then.
WATCH_AFTER_SECONDS = 0.05


def requested_deadline(scope: Scope) -> float:
    """The deadline (of `time.perf_counter`) that the client asks for by a header; its
    milliseconds count from the request's head. Infinite without the header.

    Raises:
        InvalidHeader: it is not a whole number of milliseconds.
    """
    value = header(scope, b"x-request-timeout-ms")
    if value is None:
        return float("inf")
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        value = "0"
    if not 0 < int(value) <= MAX_MS:
        detail = f"{HEADER} must be a number of milliseconds, 1 to {MAX_MS}"
        raise InvalidHeader(detail)
    started: float = scope["state"]["started"]
    return started + int(value) / 1000


class RequestDeadlines:
    """Cancels requests whose client has gone, or whose deadline has passed."""

    def __init__(self, seconds: float):
        """
        Args:
            seconds: that a request may take once its body is complete.
        """
        self._seconds = seconds
        self._scopes: dict[DeadlineScope, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enforce(
        self, scope: Scope, receive: Receive, deadline: float
    ) -> "DeadlineScope":
        """A context manager that cancels the current task at the deadline, or when the
        client disconnects. Its value is the deadline that applies.

        Args:
            deadline: that the client asks for; the setting's may come first.

        Raises:
            ClientDisconnect, DeadlineExceeded: at the end of the block.
        """
        deadline = min(deadline, time.perf_counter() + self._seconds)
        connection = scope.get("extensions", {}).get(CONNECTION)
        return DeadlineScope(self, connection, receive, deadline)

    def add(self, scope: "DeadlineScope") -> None:
        self._scopes[scope] = None
        if self._timer is None:
            self._schedule()

    def discard(self, scope: "DeadlineScope") -> None:
        self._scopes.pop(scope, None)

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(CHECK_SECONDS, self._check_all)

    def _check_all(self) -> None:
        """Checks all requests at once: a timer for each would cost more."""
        self._timer = None
        now = time.perf_counter()
        for scope in list(self._scopes):
            scope.check(now)
        if self._scopes:
            self._schedule()


class DeadlineScope:
    """The deadline of one request; see `RequestDeadlines.enforce`."""

    def __init__(
        self,
        deadlines: RequestDeadlines,
        connection: Connection | None,
        receive: Receive,
        deadline: float,
    ):
        self._deadlines, self._receive, self._deadline = deadlines, receive, deadline
        self._connection = connection  # None: another server's, watched through ASGI
        self._disconnect: asyncio.Future[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._finished = False
        self._reason: Exception | None = None  # for which the task was cancelled

    def __enter__(self) -> float:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._entered = task, time.perf_counter()
        if self._connection is not None:
            if self._connection.transport.is_closing():  # while its body was read
                raise ClientDisconnect
            self._connection.on_lost = self._disconnected
        self._set_timer()
        self._deadlines.add(self)
        return self._deadline

    def shorten(self, deadline: float) -> float:
        """Set an earlier deadline, and return the one that applies."""
        if deadline < self._deadline:
            self._deadline = deadline
            self._set_timer()
        return self._deadline

    def _set_timer(self) -> None:
        """A timer of its own, for a deadline before the next check of all requests."""
        left = self._deadline - time.perf_counter()
        if left < CHECK_SECONDS:
            if self._timer is not None:
                self._timer.cancel()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(left, 0), self._expired)

    def check(self, now: float) -> None:
        """Cancel the task if its deadline has passed, and watch for a disconnect."""
        if now >= self._deadline:
            self._expired()
        elif (
            self._connection is None
            and self._disconnect is None
            and now > self._entered + WATCH_AFTER_SECONDS
        ):
            # The body is complete: the next message can only be the disconnect.
            self._disconnect = asyncio.ensure_future(self._receive())
            self._disconnect.add_done_callback(self._received)

    def _received(self, message: "asyncio.Future[Message]") -> None:
        # Also at the very moment in which the response is ready.
        if not message.cancelled():
            self._disconnected()

    def _disconnected(self) -> None:
        self._cancel(ClientDisconnect())

    def _expired(self) -> None:
        self._cancel(DeadlineExceeded("the request was not answered by its deadline"))

    def _cancel(self, reason: Exception) -> None:
        if not self._finished and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._deadlines.discard(self)
        self._finished = True
        if self._connection is not None:
            self._connection.on_lost = None
        if self._timer is not None:
            self._timer.cancel()
        if self._disconnect is not None:
            self._disconnect.cancel()
        reason, self._reason = self._reason, None
        if (
            reason is not None
            and kind is asyncio.CancelledError
            and not self._task.uncancel()
        ):
            try:
                raise reason from None
            finally:
                del reason  # else it would hold this frame, which holds it
