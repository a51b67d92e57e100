"""Request bodies: media type, size limit and decompression."""

from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.callers.caller import Caller, caller_of
from service.codecs import compression
from service.codecs.compression import Body, CompressedBody
from service.errors import TooLarge, UnsupportedMedia

# `curl -d` and many small clients send one of these whatever the body is.
UNSPECIFIC_TYPES = ("application/x-www-form-urlencoded", "")
INLINE_BYTES = 64 * 1024  # decompressed on the event loop, in under a millisecond


@dataclass(frozen=True, slots=True)
class BodyHeaders:
    """The headers that describe a request's body."""

    media_type: str
    coding: str  # how the body is compressed; empty: it is not
    length: bytes  # empty where it is unknown

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Find them in a request.

        Raises:
            UnsupportedMedia: the body is compressed in an unsupported way.
        """
        media_type, coding, length = b"", b"", b""
        for name, value in reversed(scope["headers"]):  # of several the first counts
            if name == b"content-type":
                media_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                coding = value.strip().lower()
            elif name == b"content-length":
                length = value
        name = "" if coding == b"identity" else coding.decode("latin-1")
        if name and name not in compression.WINDOW_BITS:
            accept = ", ".join(compression.WINDOW_BITS)
            detail = f"Content-Encoding must be identity, {accept}"
            raise UnsupportedMedia(detail, headers={"Accept-Encoding": accept})
        return cls(media_type.decode("latin-1"), name, length)

    def check(self, *media_types: str) -> None:
        """Accept these media types, and those that say nothing.

        Raises:
            UnsupportedMedia: the body has another media type.
        """
        if self.media_type not in (*media_types, *UNSPECIFIC_TYPES):
            accept = {"Accept": ", ".join(media_types)}
            detail = f"Content-Type must be {' or '.join(media_types)}"
            raise UnsupportedMedia(detail, headers=accept)


class BodyReader:
    """Reads request bodies within the limit, and counts their bytes for the caller."""

    def __init__(self, limit: int):
        """
        Args:
            limit: bytes that a body may have, both compressed and decompressed.
        """
        self._limit = limit

    async def read(self, scope: Scope, receive: Receive, *media_types: str) -> Body:
        """Receive a whole body. A compressed one is decompressed, unless it is large.

        Args:
            media_types: accepted; none: every media type is.

        Raises:
            UnsupportedMedia: another media type, or an unsupported compression.
            TooLarge: over the limit; nothing more is read or decompressed then.
            BadEncoding: the body can't be decompressed.
            BufferFull: no room for it in the memory budget.
            ClientDisconnect: the client went before the body was complete.
        """
        headers = BodyHeaders.of(scope)
        if media_types:
            headers.check(*media_types)
        caller = caller_of(scope)
        body = await _receive(receive, self._limit, headers.length, caller)
        if not headers.coding:
            return body
        if len(body) <= INLINE_BYTES:
            inline = min(INLINE_BYTES, self._limit)
            try:
                decompressed = compression.decompress(body, headers.coding, inline)
                caller.reservation.resize(len(decompressed))
                return decompressed
            except TooLarge:
                if self._limit <= INLINE_BYTES:
                    raise
        return CompressedBody(body, headers.coding, self._limit)


async def _receive(
    receive: Receive, limit: int, length: bytes, caller: Caller
) -> bytes:
    detail = f"at most {limit} bytes in a body"
    if length.isdigit() and int(length[:20]) > limit:
        raise TooLarge(detail)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(detail)
        caller.reservation.grow_to(size)  # our own server has counted it already
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
