"""gzip and deflate (RFC 1952, RFC 1950): request bodies within a limit, and responses."""

import asyncio
import zlib
from typing import NamedTuple

from starlette.types import Message, Receive

from service.errors import BadEncoding, TooLarge

WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's, which choose the kind of header too
MIN_BYTES = 1024  # a shorter response hardly gets smaller
MAX_MEMBERS = 64  # of a gzip file; each costs a copy of all that follows
PART_BYTES = 64 * 1024  # decompressed at a time, of a body that is streamed
LEVEL = 1  # responses are numbers: other levels take longer and save little


class CompressedBody(NamedTuple):
    """A body that is decompressed where it is decoded: a few bytes can expand to very many."""

    data: bytes
    coding: str
    limit: int  # bytes when decompressed


Body = bytes | CompressedBody


def whole(body: Body) -> bytes:
    """Return a body as it was before it was compressed.

    Raises:
        BadEncoding, TooLarge: see `decompress`.
    """
    return body if isinstance(body, bytes) else decompress(*body)


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Decompress a whole body.

    Raises:
        BadEncoding: the body is not compressed in that way, or not complete.
        TooLarge: more than `limit` bytes; no more than these are produced.
    """
    parts, left = [], limit
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(WINDOW_BITS[coding])
        try:
            part = stream.decompress(body, left + 1)
        except zlib.error:
            raise BadEncoding(f"the body is not {coding}") from None
        left -= len(part)
        if left < 0:
            raise TooLarge(f"at most {limit} bytes in a body, when decompressed")
        if not stream.eof:
            raise BadEncoding(f"the {coding} data in the body is truncated")
        parts.append(part)
        body = stream.unused_data
        if not body:
            return b"".join(parts)
        if coding != "gzip":  # only gzip may have several members
            break
    raise BadEncoding(f"the body has data after its {coding} data")


class DecompressingReceive:
    """An ASGI `receive` that decompresses the body part by part."""

    def __init__(self, receive: Receive, coding: str):
        self._receive, self._coding = receive, coding
        self._stream = zlib.decompressobj(WINDOW_BITS[coding])
        self._members = 1
        self._input = b""  # received, and not decompressed yet
        self._more_input = self._more_output = False

    async def __call__(self) -> Message:
        """The next message, of at most `PART_BYTES` bytes. Its `pending` is the size of
        the input that is not decompressed yet.

        Raises:
            BadEncoding: see `decompress`.
        """
        if self._input or self._more_output:
            # A small input can expand to very much: let other tasks run in between.
            await asyncio.sleep(0)
        else:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message
            self._input = message.get("body", b"")
            self._more_input = message.get("more_body", False)
        body = self._decompress()
        more = self._more_input or self._more_output or bool(self._input)
        if not more and not self._stream.eof:
            raise BadEncoding(f"the {self._coding} data in the body is truncated")
        pending = len(self._input)
        message = {"type": "http.request", "body": body, "more_body": more}
        return message | {"pending": pending}

    def _decompress(self) -> bytes:
        stream = self._stream
        if stream.eof:
            if not self._input:
                return b""
            self._members += 1
            if self._coding != "gzip" or self._members > MAX_MEMBERS:
                raise BadEncoding(f"the body has data after its {self._coding} data")
            stream = self._stream = zlib.decompressobj(WINDOW_BITS[self._coding])
        try:
            body = stream.decompress(self._input, PART_BYTES)
        except zlib.error:
            raise BadEncoding(f"the body is not {self._coding}") from None
        self._input = stream.unused_data if stream.eof else stream.unconsumed_tail
        self._more_output = len(body) == PART_BYTES and not stream.eof
        return body


def compress(body: bytes, coding: str) -> bytes:
    """Compress a whole response."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS[coding])
    return stream.compress(body) + stream.flush()


def accepted_encoding(header: str | None) -> str | None:
    """The coding for a response, chosen from `Accept-Encoding` (RFC 9110, 12.5.3); None:
    uncompressed. Never br or zstd, which not every client of these protocols reads."""
    weights = {"identity": 0.0}
    for item in (header or "").lower().split(","):
        coding, _, parameter = item.partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        weights[coding.strip()] = weight
    best = max(WINDOW_BITS, key=lambda coding: weights.get(coding, 0.0))
    weight = weights.get(best, 0.0)
    return best if weight > 0 and weight >= weights["identity"] else None
