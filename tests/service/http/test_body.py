"""Request bodies: parts, limits, media types and decompression."""

import asyncio
import gzip
import zlib

import pytest
from starlette.requests import ClientDisconnect

from service.codecs import compression
from service.codecs.compression import DecompressingReceive, whole
from service.errors import BadEncoding, TooLarge, UnsupportedMedia
from service.http.body import BodyReader
from tests.support.servers import anonymous_caller

pytestmark = pytest.mark.anyio


class Client:
    """Sends a body in parts, and then stays connected until `disconnect`."""

    def __init__(self, *parts, **headers):
        pairs = {name.replace("_", "-"): text for name, text in headers.items()}
        self.scope = {
            "type": "http",
            "state": {"caller": anonymous_caller()},
            "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
        }
        self.received = 0  # calls of `receive`
        self._parts = list(parts)
        self._disconnected = asyncio.Event()

    def disconnect(self):
        self._disconnected.set()

    async def receive(self):
        self.received += 1
        if self._parts:
            part = self._parts.pop(0)
            more = bool(self._parts)
            return {"type": "http.request", "body": part, "more_body": more}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def read(self, limit=100):
        read = BodyReader(limit).read
        return await read(self.scope, self.receive, "application/json")


class TestRead:
    async def test_parts(self):
        """A body may arrive in any parts, up to the limit."""
        for parts in ([b""], [b"abc"], [b"a", b"bc"], [b"", b"a", b"", b"bc", b""]):
            assert await Client(*parts).read() == b"".join(parts)
        for parts in ([b"x" * 100], [b"x"] * 100):
            assert await Client(*parts).read() == b"x" * 100
            with pytest.raises(TooLarge, match="100 bytes"):
                await Client(*parts, b"x").read()

    async def test_reads_no_further(self):
        """The rest of a body over the limit is not read. If its header says so, none of
        it is; a header that is too small does not matter."""
        client = Client(*[b"x" * 60] * 10)
        with pytest.raises(TooLarge):
            await client.read()
        assert client.received == 2
        client = Client(b"x", content_length="101")
        with pytest.raises(TooLarge):
            await client.read()
        assert client.received == 0
        assert await Client(b"x", content_length="100").read() == b"x"
        with pytest.raises(TooLarge):
            await Client(b"x" * 60, b"x" * 60, content_length="5").read()

    async def test_disconnect(self):
        """A client may disconnect before its body is complete."""
        client = Client(b"x", b"y")
        client.disconnect()

        async def receive():
            return await client.receive() | {"more_body": True}

        with pytest.raises(ClientDisconnect):
            await BodyReader(100).read(client.scope, receive)

    async def test_media_types(self):
        """JSON is accepted in any spelling, and by default. Anything else is refused
        unread, with what is accepted."""
        for media_type in (
            "application/json",
            "Application/JSON; charset=utf-8",
            "",
            " application/json ",
        ):
            assert await Client(b"x", content_type=media_type).read() == b"x"
        assert await Client(b"x").read() == b"x"
        for name, text, accept in (
            ("content_type", "text/plain", "Accept"),
            ("content_type", "application/jsonp", "Accept"),
            ("content_encoding", "br", "Accept-Encoding"),
            ("content_encoding", "identitygzip", "Accept-Encoding"),
            ("content_encoding", "identity, gzip", "Accept-Encoding"),
        ):
            client = Client(b"x", **{name: text})
            with pytest.raises(UnsupportedMedia) as caught:
                await client.read()
            assert list(caught.value.headers) == [accept]
            assert client.received == 0

    @pytest.mark.parametrize(
        ("coding", "compress"), [("gzip", gzip.compress), ("DEFLATE", zlib.compress)]
    )
    async def test_decompresses(self, coding, compress):
        """A compressed body is decompressed up to the limit, a large one where it is
        decoded, and refused if it is not what its header says."""

        async def read(body, limit=100):
            return whole(await Client(body, content_encoding=coding).read(limit))

        assert await read(compress(b"x" * 100)) == b"x" * 100
        with pytest.raises(TooLarge, match="100 bytes"):
            await read(compress(b"x" * 101))
        large = await Client(compress(b"x" * 10**6), content_encoding=coding).read(
            10**6
        )
        assert len(large.data) < 10**4
        assert whole(large) == b"x" * 10**6
        with pytest.raises(TooLarge, match="1000000 bytes"):
            await read(compress(b"x" * (10**6 + 1)), 10**6)
        for broken in (b"x", b"", compress(b"x")[:-1], compress(b"x") + b"more"):
            with pytest.raises(BadEncoding):
                await read(broken)


class TestDecompressingReceive:
    async def read(self, coding, *parts):
        """The parts of the decompressed body."""
        receive = DecompressingReceive(Client(*parts).receive, coding)
        decompressed, more = [], True
        while more:
            message = await receive()
            decompressed.append(message["body"])
            more = message["more_body"]
        return decompressed

    @pytest.mark.parametrize("size", [1, 7, 10**6])
    async def test_parts(self, size):
        """A body may arrive in any parts, and none is long when decompressed."""
        body = bytes(range(256)) * 100 + b" " * 300_000
        for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            packed = compress(body)
            parts = [packed[at : at + size] for at in range(0, len(packed), size)]
            decompressed = await self.read(coding, *parts)
            assert b"".join(decompressed) == body
            assert max(map(len, decompressed)) <= compression.PART_BYTES

    async def test_members(self):
        """Several gzip members are one body. Nothing may follow the last, nor deflate."""
        first, second = gzip.compress(b"a" * 100_000), gzip.compress(b"b")
        for parts in ([first + second], [first, second[:5], second[5:]]):
            assert b"".join(await self.read("gzip", *parts)) == b"a" * 100_000 + b"b"
        for coding, parts in (
            ("gzip", [first, b"x" * 65536]),
            ("gzip", [second * 65]),
            ("deflate", [zlib.compress(b"a"), zlib.compress(b"a")]),
            ("gzip", [b"x"]),
            ("gzip", [b""]),
            ("gzip", [gzip.compress(b"x", mtime=0)[:-1]]),
        ):
            with pytest.raises(BadEncoding):
                await self.read(coding, *parts)

    async def test_disconnect(self):
        client = Client()
        client.disconnect()
        message = await DecompressingReceive(client.receive, "gzip")()
        assert message["type"] == "http.disconnect"
