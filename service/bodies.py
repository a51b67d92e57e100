"""Read a request's body within limits, and notice when its caller goes."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from .errors import TooLarge, UnsupportedMedia

T = TypeVar("T")


async def read_json(request: Request, limit: int) -> bytes:
    """The raw bytes of a JSON body.

    Raises:
        UnsupportedMedia: another content type, or compressed.
        TooLarge: over `limit` bytes; nothing more is read then.
        ClientDisconnect: the caller went before the body was whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # curl -d and many small clients say a form when they mean nothing.
    if kind not in ("application/json", "application/x-www-form-urlencoded", ""):
        accept = {"Accept": "application/json"}
        raise UnsupportedMedia("Content-Type must be application/json", headers=accept)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        accept = {"Accept-Encoding": "identity"}
        raise UnsupportedMedia("Content-Encoding must be identity", headers=accept)
    too_large = TooLarge(f"at most {limit} bytes in a body")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the caller goes.

    Raises:
        ClientDisconnect: the caller went first.
    """
    task = asyncio.ensure_future(work)
    # The body has been read: what comes next can only be the end.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            one.cancel()
        with suppress(asyncio.CancelledError):
            await gone
