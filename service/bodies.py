"""Read a request's body within limits, and notice when its caller goes."""

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from . import compression
from .errors import TooLarge, UnsupportedMedia

# Most answers are there sooner; to watch a connection costs as much as to answer it.
PATIENCE_SECONDS = 0.05


# curl -d and many small clients say a form when they mean nothing.
MEANINGLESS = ("application/x-www-form-urlencoded", "")


@dataclass(frozen=True, slots=True)
class Told:
    """What a request's head says of its body."""

    kind: str  # its media type
    coding: str  # how it is compressed; empty: it isn't
    length: bytes  # empty where it isn't known

    def check(self, *kinds: str) -> None:
        """That the body is of one of these kinds, or said to be nothing in
        particular.

        Raises:
            UnsupportedMedia: it isn't.
        """
        if self.kind not in (*kinds, *MEANINGLESS):
            accept = {"Accept": ", ".join(kinds)}
            told = f"Content-Type must be {' or '.join(kinds)}"
            raise UnsupportedMedia(told, headers=accept)


def told(scope: Scope) -> Told:
    """What the head says.

    Raises:
        UnsupportedMedia: the body is compressed in a way that is unknown here.
    """
    kind, coding, length = b"", b"", b""
    for name, value in reversed(scope["headers"]):  # of several the first counts
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            coding = value.strip().lower()
        elif name == b"content-length":
            length = value
    named = "" if coding == b"identity" else coding.decode("latin-1")
    if named and named not in compression.WINDOWS:
        accept = ", ".join(compression.WINDOWS)
        text = f"Content-Encoding must be identity, {accept}"
        raise UnsupportedMedia(text, headers={"Accept-Encoding": accept})
    return Told(kind.decode("latin-1"), named, length)


async def read(scope: Scope, receive: Receive, limit: int, *kinds: str) -> bytes:
    """A body, inflated where it is compressed.

    Args:
        limit: bytes that it may have, before and after.
        kinds: that it may be of; none: its media type says nothing.

    Raises:
        UnsupportedMedia: another kind, or compressed in another way.
        TooLarge: over the limit; nothing more is read, or inflated, then.
        BadEncoding: it can't be inflated.
        ClientDisconnect: the caller went before the body was whole.
    """
    head = told(scope)
    if kinds:
        head.check(*kinds)
    body = await _read(receive, limit, head.length)
    if not head.coding:
        return body
    # In a thread, which does not hold the interpreter meanwhile.
    return await asyncio.to_thread(compression.inflate, body, head.coding, limit)


async def _read(receive: Receive, limit: int, length: bytes) -> bytes:
    too_large = f"at most {limit} bytes in a body"
    if length.isdigit() and int(length[:20]) > limit:
        raise TooLarge(too_large)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(too_large)
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Callers:
    """Those who wait for an answer: what is done for one that goes is cancelled."""

    def __init__(self) -> None:
        self._waiting: dict[Waiting, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def waiting(self, receive: Receive) -> "Waiting":
        """A context in which the current task is cancelled when its caller goes.

        Raises:
            ClientDisconnect: at its end, if the caller went.
        """
        return Waiting(self, receive)

    def add(self, one: "Waiting") -> None:
        self._waiting[one] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PATIENCE_SECONDS, self._look)

    def discard(self, one: "Waiting") -> None:
        self._waiting.pop(one, None)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for one in list(self._waiting):
            if one.since + PATIENCE_SECONDS > now:
                self._timer = loop.call_later(PATIENCE_SECONDS, self._look)
                return
            self.discard(one)
            one.watch()


class Waiting:
    """One of them."""

    def __init__(self, callers: Callers, receive: Receive):
        self._callers, self._receive = callers, receive
        self._gone: asyncio.Future[Message] | None = None
        self._over = self._cancelled = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self.since = task, asyncio.get_running_loop().time()
        self._callers.add(self)

    def watch(self) -> None:
        # The body has been read: what comes next can only be the end.
        self._gone = asyncio.ensure_future(self._receive())
        self._gone.add_done_callback(self._end)

    def _end(self, ended: "asyncio.Future[Message]") -> None:
        # Also when it goes in the very moment in which it is answered.
        if not self._over and not ended.cancelled():
            self._cancelled = True
            self._task.cancel()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._callers.discard(self)
        self._over = True
        if self._gone is not None:
            self._gone.cancel()
        if (
            self._cancelled
            and kind is asyncio.CancelledError
            and not self._task.uncancel()
        ):
            raise ClientDisconnect from None
