"""Read a request's body within limits."""

import asyncio
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from . import compression
from .errors import TooLarge, UnsupportedMedia

# curl -d and many small clients say a form when they mean nothing.
MEANINGLESS = ("application/x-www-form-urlencoded", "")
SLOTS = 16  # bodies that were compressed, until they are answered
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
_slots = WeakKeyDictionary()


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
    # Of a few bytes come very many: only so many are there at a time.
    slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(SLOTS))
    await slots.acquire()
    scope["state"].setdefault("ends", []).append(slots.release)
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
