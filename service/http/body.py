"""Read a request's body within limits."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.callers.caller import Caller, caller_of
from service.callers.fair_slots import FairSlots
from service.errors import TooLarge, UnsupportedMedia
from service.http import compression

# curl -d and many small clients say a form when they mean nothing.
MEANINGLESS = ("application/x-www-form-urlencoded", "")
THREADS = 2  # that inflate: as many bodies as may become long at a time
SHORT = 64 * 1024  # bytes that are inflated at once, in less than a millisecond


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


class BodyReader:
    """Reads bodies, each counted for its caller."""

    def __init__(self, limit: int):
        """
        Args:
            limit: bytes that a body may have, before and after it is inflated.
        """
        self._limit = limit
        self._slots: FairSlots[int] = FairSlots(range(THREADS))

    async def read(
        self, scope: Scope, receive: Receive, *kinds: str
    ) -> Callable[[], Awaitable[bytes]]:
        """A whole body; what is returned inflates it, where it is compressed. That may
        have to wait, which must not be longer than the caller does.

        Args:
            kinds: that it may be of; none: its media type says nothing.

        Raises:
            UnsupportedMedia: another kind, or compressed in another way.
            TooLarge: over the limit; nothing more is read then.
            BufferFull: no room for it.
            ClientDisconnect: the caller went before the body was whole.
        """
        head = told(scope)
        if kinds:
            head.check(*kinds)
        caller = caller_of(scope)
        parts = [await _read(receive, self._limit, head.length, caller)]

        async def body() -> bytes:
            """The body, once.

            Raises:
                TooLarge: over the limit; nothing more is inflated then.
                BadEncoding: it can't be inflated.
                BufferFull: no room for it.
            """
            whole = parts.pop()
            if not head.coding:
                return whole
            return await self._inflated(whole, head.coding, caller)

        return body

    async def _inflated(self, body: bytes, coding: str, caller: Caller) -> bytes:
        if len(body) <= SHORT:
            try:
                inflated = compression.decompress(body, coding, min(SHORT, self._limit))
                caller.reservation.resize(len(inflated))
                return inflated
            except TooLarge:
                if self._limit <= SHORT:
                    raise
        place = await self._slots.acquire(caller.id, self._limit)
        try:
            # Of a few bytes come very many: there is room for all before it is known.
            caller.reservation.resize(len(body) + self._limit)
            # In a thread, which does not hold the interpreter meanwhile.
            work = asyncio.to_thread(compression.decompress, body, coding, self._limit)
            inflated = await asyncio.shield(work)
        finally:
            self._slots.release(place)
        caller.reservation.resize(len(inflated))
        return inflated


async def _read(receive: Receive, limit: int, length: bytes, caller: Caller) -> bytes:
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
        caller.reservation.grow_to(size)  # our own server has counted it already
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
