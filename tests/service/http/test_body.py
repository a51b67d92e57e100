"""Bodies within their limits."""

import asyncio
import gzip
import zlib

import pytest
from starlette.requests import ClientDisconnect

from service.errors import BadEncoding, TooLarge, UnsupportedMedia
from service.http import compression
from service.http.body import BodyReader
from service.http.compression import DecompressingReceive
from tests.support.servers import anonymous_caller

pytestmark = pytest.mark.anyio


class Caller:
    """Sends a body in parts, then stays until it is told to go."""

    def __init__(self, *parts, **headers):
        pairs = {name.replace("_", "-"): text for name, text in headers.items()}
        self.scope = {
            "type": "http",
            "state": {"caller": anonymous_caller()},
            "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
        }
        self.asked = 0  # how often it was waited for
        self._parts = list(parts)
        self._gone = asyncio.Event()

    def go(self):
        self._gone.set()

    async def receive(self):
        self.asked += 1
        if self._parts:
            part = self._parts.pop(0)
            more = bool(self._parts)
            return {"type": "http.request", "body": part, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def read(self, limit=100):
        read = BodyReader(limit).read
        return await (await read(self.scope, self.receive, "application/json"))()


class TestRead:
    @pytest.mark.parametrize(
        "parts", [[b""], [b"abc"], [b"a", b"bc"], [b"", b"a", b"", b"bc", b""]]
    )
    async def test_parts(self, parts):
        """A body is the same in whatever parts it comes."""
        assert await Caller(*parts).read() == b"".join(parts)

    @pytest.mark.parametrize("parts", [[b"x" * 100], [b"x"] * 100])
    async def test_as_long_as_allowed(self, parts):
        """A body as long as allowed is read, one byte more is refused."""
        assert await Caller(*parts).read() == b"x" * 100
        with pytest.raises(TooLarge, match="100 bytes"):
            await Caller(*parts, b"x").read()

    async def test_reads_no_further(self):
        """What is over the limit is not read to its end."""
        caller = Caller(*[b"x" * 60] * 10)
        with pytest.raises(TooLarge):
            await caller.read()
        assert caller.asked == 2

    async def test_says_its_length(self):
        """What says that it is over the limit is not read at all; what says another
        length than it has is judged by what it has."""
        caller = Caller(b"x", content_length="101")
        with pytest.raises(TooLarge):
            await caller.read()
        assert caller.asked == 0
        assert await Caller(b"x", content_length="100").read() == b"x"
        with pytest.raises(TooLarge):
            await Caller(b"x" * 60, b"x" * 60, content_length="5").read()

    async def test_goes_within(self):
        """A caller that goes before its body is whole is answered no more."""
        caller = Caller(b"x", b"y")
        caller.go()
        received = caller.receive

        async def cut():
            message = await received()
            return message | {"more_body": True}

        with pytest.raises(ClientDisconnect):
            await BodyReader(100).read(caller.scope, cut)

    @pytest.mark.parametrize(
        "kind",
        [
            "application/json",
            "Application/JSON; charset=utf-8",
            "",
            " application/json ",
        ],
    )
    async def test_json(self, kind):
        """JSON is taken in any writing of its name, and where nothing is said."""
        assert await Caller(b"x", content_type=kind).read() == b"x"
        assert await Caller(b"x").read() == b"x"

    @pytest.mark.parametrize(
        ("name", "text", "accept"),
        [
            ("content_type", "text/plain", "Accept"),
            ("content_type", "application/jsonp", "Accept"),
            ("content_encoding", "br", "Accept-Encoding"),
            ("content_encoding", "identitygzip", "Accept-Encoding"),
            ("content_encoding", "identity, gzip", "Accept-Encoding"),
        ],
    )
    async def test_another_kind(self, name, text, accept):
        """Anything else is refused unread, with what is taken."""
        caller = Caller(b"x", **{name: text})
        with pytest.raises(UnsupportedMedia) as caught:
            await caller.read()
        assert list(caught.value.headers) == [accept]
        assert caller.asked == 0


class TestInflates:
    @pytest.mark.parametrize(
        ("coding", "squeeze"), [("gzip", gzip.compress), ("DEFLATE", zlib.compress)]
    )
    async def test_inflates(self, coding, squeeze):
        """A compressed body is inflated, up to the limit and no further, and one that
        isn't what it says is refused."""

        def read(body, limit=100):
            return Caller(body, content_encoding=coding).read(limit)

        assert await read(squeeze(b"x" * 100)) == b"x" * 100
        with pytest.raises(TooLarge, match="100 bytes"):
            await read(squeeze(b"x" * 101))
        for broken in (b"x", b"", squeeze(b"x")[:-1], squeeze(b"x") + b"more"):
            with pytest.raises(BadEncoding):
                await read(broken)

    @pytest.mark.parametrize("size", [1, 7, 10**6])
    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    async def test_as_it_comes(self, coding, size):
        """The same of a stream's body, in whatever parts it comes, of which none is
        long when it is inflated."""
        squeeze = {"gzip": gzip.compress, "deflate": zlib.compress}[coding]
        whole = bytes(range(256)) * 100 + b" " * 300_000
        body = squeeze(whole)
        caller = Caller(*(body[at : at + size] for at in range(0, len(body), size)))
        inflating, read, more = DecompressingReceive(caller.receive, coding), [], True
        while more:
            message = await inflating()
            read.append(message["body"])
            more = message["more_body"]
        assert b"".join(read) == whole
        assert max(map(len, read)) <= compression.PART_BYTES

    async def test_members(self):
        """Several members of gzip are one body; after the last one, and after deflate,
        nothing may come, however much of it."""

        async def read(coding, *parts):
            inflating, read, more = (
                DecompressingReceive(Caller(*parts).receive, coding),
                b"",
                True,
            )
            while more:
                message = await inflating()
                read += message["body"]
                more = message["more_body"]
            return read

        one, two = gzip.compress(b"a" * 100_000), gzip.compress(b"b")
        assert await read("gzip", one + two) == b"a" * 100_000 + b"b"
        assert await read("gzip", one, two[:5], two[5:]) == b"a" * 100_000 + b"b"
        for coding, parts in (
            ("gzip", [one, b"x" * 65536]),
            ("gzip", [two * 65]),
            ("deflate", [zlib.compress(b"a"), zlib.compress(b"a")]),
        ):
            with pytest.raises(BadEncoding):
                await read(coding, *parts)

    @pytest.mark.parametrize("body", [b"x", b"", gzip.compress(b"x", mtime=0)[:-1]])
    async def test_is_none(self, body):
        """A stream's body that isn't compressed as it says, or ends within, is told."""
        with pytest.raises(BadEncoding):
            await DecompressingReceive(Caller(body).receive, "gzip")()

    async def test_goes(self):
        """A caller that goes has gone."""
        caller = Caller()
        caller.go()
        message = await DecompressingReceive(caller.receive, "gzip")()
        assert message["type"] == "http.disconnect"
