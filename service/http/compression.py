"""gzip and deflate (RFC 1952, RFC 1950): bodies in, within a limit, and answers out."""

import asyncio
import zlib

from starlette.types import Message, Receive

from service.errors import BadEncoding, TooLarge

WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's window bits, with its kind of header
MIN_BYTES = 1024  # bytes; less is hardly made smaller
MOST_MEMBERS = 64  # each is a copy of all that follow
PART = 64 * 1024  # bytes inflated at a time, of a body that is not kept
LEVEL = 1  # answers are numbers: other levels take longer and gain little


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """What was compressed.

    Raises:
        BadEncoding: it wasn't, or not all of it is there.
        TooLarge: more than `limit` bytes; no more than these are made.
    """
    parts, left = [], limit
    for _ in range(MOST_MEMBERS):
        stream = zlib.decompressobj(WINDOWS[coding])
        try:
            part = stream.decompress(body, left + 1)
        except zlib.error:
            raise BadEncoding(f"the body is not {coding}") from None
        left -= len(part)
        if left < 0:
            raise TooLarge(f"at most {limit} bytes in a body, when inflated")
        if not stream.eof:
            raise BadEncoding(f"the body ends within its {coding}")
        parts.append(part)
        body = stream.unused_data
        if not body:
            return b"".join(parts)
        if coding != "gzip":  # which may have several members
            break
    raise BadEncoding(f"the body goes on after its {coding}")


class DecompressingReceive:
    """A body as it comes, for what takes its parts one after another."""

    def __init__(self, receive: Receive, coding: str):
        self._receive, self._coding = receive, coding
        self._stream = zlib.decompressobj(WINDOWS[coding])
        self._members = 1
        self._rest = b""  # still to be inflated
        self._more = self._full = False  # to be read; of what was inflated

    async def __call__(self) -> Message:
        """The next message, no longer than `PART` bytes; `pending` are those that are
        still to be inflated.

        Raises:
            BadEncoding: as `inflate`.
        """
        if self._rest or self._full:
            await asyncio.sleep(0)  # a little may become very much: others have turns
        else:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message
            self._rest = message.get("body", b"")
            self._more = message.get("more_body", False)
        body = self._inflated()
        more = self._more or self._full or bool(self._rest)
        if not more and not self._stream.eof:
            raise BadEncoding(f"the body ends within its {self._coding}")
        pending = len(self._rest)
        message = {"type": "http.request", "body": body, "more_body": more}
        return message | {"pending": pending}

    def _inflated(self) -> bytes:
        stream = self._stream
        if stream.eof:
            if not self._rest:
                return b""
            self._members += 1
            if self._coding != "gzip" or self._members > MOST_MEMBERS:
                raise BadEncoding(f"the body goes on after its {self._coding}")
            stream = self._stream = zlib.decompressobj(WINDOWS[self._coding])
        try:
            body = stream.decompress(self._rest, PART)
        except zlib.error:
            raise BadEncoding(f"the body is not {self._coding}") from None
        self._rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        self._full = len(body) == PART and not stream.eof
        return body


def compress(answer: bytes, coding: str) -> bytes:
    """An answer, compressed."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOWS[coding])
    return stream.compress(answer) + stream.flush()


def accepted_encoding(header: str | None) -> str | None:
    """The coding to answer in, of an `Accept-Encoding` (RFC 9110, 12.5.3); None: as
    it is. Never one that not every client of these protocols reads (br, zstd)."""
    weights = {"identity": 0.0}
    for item in (header or "").lower().split(","):
        coding, _, parameter = item.partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        weights[coding.strip()] = weight
    best = max(WINDOWS, key=lambda coding: weights.get(coding, 0.0))
    weight = weights.get(best, 0.0)
    return best if weight > 0 and weight >= weights["identity"] else None
