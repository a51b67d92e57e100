"""Those who wait for an answer: until when, and whether they still do."""

import asyncio
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from service.errors import DeadlineExceeded, InvalidHeader
from service.http.connection import CONNECTION, Connection
from service.http.middleware import header

HEADER = "X-Request-Timeout-Ms"
LONGEST_MS = 86_400_000
LOOK_SECONDS = 0.02  # between looks
# Most answers are there sooner; to watch by ASGI costs as much as to answer.
PATIENCE_SECONDS = 0.05


def requested_deadline(scope: Scope) -> float:
    """The moment (of `time.perf_counter`) at which a caller wants to wait no longer, by
    its header, which counts from the request's head; infinite where it says nothing.

    Raises:
        InvalidHeader: it is no whole number of milliseconds.
    """
    given = header(scope, b"x-request-timeout-ms")
    if given is None:
        return float("inf")
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        given = "0"
    if not 0 < int(given) <= LONGEST_MS:
        told = f"{HEADER} must be a number of milliseconds, 1 to {LONGEST_MS}"
        raise InvalidHeader(told)
    begun: float = scope["state"]["begun"]
    return begun + int(given) / 1000


class RequestDeadlines:
    """What is done for one that goes, or whose time is up, is cancelled."""

    def __init__(self, seconds: float):
        """
        Args:
            seconds: that a request has, once its body is there.
        """
        self._seconds = seconds
        self._waiting: dict[DeadlineScope, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enforce(self, scope: Scope, receive: Receive, until: float) -> "DeadlineScope":
        """A context, of the moment by which there must be an answer: then, or when the
        caller goes, the current task is cancelled.

        Raises:
            ClientDisconnect, DeadlineExceeded: at its end.
        """
        until = min(until, time.perf_counter() + self._seconds)
        connection = scope.get("extensions", {}).get(CONNECTION)
        return DeadlineScope(self, connection, receive, until)

    def add(self, one: "DeadlineScope") -> None:
        self._waiting[one] = None
        if self._timer is None:
            self._again()

    def discard(self, one: "DeadlineScope") -> None:
        self._waiting.pop(one, None)

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """All of them, now and then: a timer for each would cost more."""
        self._timer = None
        now = time.perf_counter()
        for one in list(self._waiting):
            one.look(now)
        if self._waiting:
            self._again()


class DeadlineScope:
    """One of them."""

    def __init__(
        self,
        callers: RequestDeadlines,
        connection: Connection | None,
        receive: Receive,
        until: float,
    ):
        self._callers, self._receive, self._until = callers, receive, until
        self._connection = connection
        self._gone: asyncio.Future[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._why: Exception | None = None  # it was cancelled

    def __enter__(self) -> float:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._since = task, time.perf_counter()
        if self._connection is not None:
            if self._connection.transport.is_closing():  # while its body was read
                raise ClientDisconnect
            self._connection.lost = self._left
        self._watch()
        self._callers.add(self)
        return self._until

    def shorten(self, until: float) -> float:
        """Wait no longer than until then; until when it is now."""
        if until < self._until:
            self._until = until
            self._watch()
        return self._until

    def _watch(self) -> None:
        left = self._until - time.perf_counter()
        if left < LOOK_SECONDS:
            if self._timer is not None:
                self._timer.cancel()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(left, 0), self._late)

    def look(self, now: float) -> None:
        """See whether its time is up, and whether it is still there."""
        if now >= self._until:
            self._late()
        elif (
            self._connection is None
            and self._gone is None
            and now > self._since + PATIENCE_SECONDS
        ):
            # The body has been read: what comes next can only be the end.
            self._gone = asyncio.ensure_future(self._receive())
            self._gone.add_done_callback(self._end)

    def _end(self, ended: "asyncio.Future[Message]") -> None:
        # Also when it goes in the very moment in which it is answered.
        if not ended.cancelled():
            self._left()

    def _left(self) -> None:
        self._cancel(ClientDisconnect())

    def _late(self) -> None:
        self._cancel(DeadlineExceeded("no answer in that time"))

    def _cancel(self, why: Exception) -> None:
        if not self._over and self._why is None:
            self._why = why
            self._task.cancel()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._callers.discard(self)
        self._over = True
        if self._connection is not None:
            self._connection.lost = None
        if self._timer is not None:
            self._timer.cancel()
        if self._gone is not None:
            self._gone.cancel()
        why, self._why = self._why, None
        if (
            why is not None
            and kind is asyncio.CancelledError
            and not self._task.uncancel()
        ):
            try:
                raise why from None
            finally:
                del why  # else it would hold this frame, which holds it
