"""A transport that sends what is written in one turn of the loop together."""

import asyncio
import socket

import pytest
from conftest import SECONDS
from hypothesis import given
from hypothesis import strategies as st

from service.gathered import Gathered


class Kept(asyncio.Transport):
    """A transport that keeps what it is given to send."""

    def __init__(self):
        super().__init__({"peername": ("here", 1)})
        self.sent = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


@given(st.lists(st.lists(st.binary(min_size=1), max_size=5), max_size=6))
def test_by_turns(parts):
    """All that is written in one turn of the loop is sent in one piece, in order, and
    nothing is sent in a turn without."""

    async def write():
        kept = Kept()
        gathered = Gathered(kept)
        for some in parts:
            for part in some:
                gathered.write(part)
            assert len(kept.sent) < 10
            await asyncio.sleep(0)
        return kept.sent

    sent = asyncio.run(write())
    assert sent == [b"".join(some) for some in parts if some]


@pytest.mark.anyio
class TestTransport:
    async def test_as_it_was(self):
        """What is sent is what was written, whatever becomes of the caller's buffer."""
        kept = Kept()
        gathered = Gathered(kept)
        buffer = bytearray(b"abc")
        gathered.write(buffer)
        gathered.write(memoryview(buffer)[1:])
        buffer[:] = b"xyz"
        await asyncio.sleep(0)
        assert kept.sent == [b"abcbc"]

    async def test_close(self):
        """To close it sends what was written before, and nothing twice."""
        kept = Kept()
        gathered = Gathered(kept)
        gathered.write(b"last")
        gathered.close()
        await asyncio.sleep(0)
        assert kept.sent == [b"last"]
        assert kept.closed

    async def test_all_else(self):
        """All else is what the transport itself says."""
        kept = Kept()
        gathered = Gathered(kept)
        assert gathered.get_extra_info("peername") == ("here", 1)
        assert not gathered.is_closing()
        gathered.close()
        assert gathered.is_closing()

    async def test_over_a_socket(self):
        """Over a real socket the other side reads it all, in order."""
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        gathered = Gathered(transport)
        parts = [bytes([number % 256]) * 5000 for number in range(300)]
        theirs.setblocking(False)

        async def write():
            for number, part in enumerate(parts):
                gathered.write(part)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            gathered.close()

        async def read():
            whole = b""
            while data := await loop.sock_recv(theirs, 2**16):
                whole += data
            return whole

        with theirs:
            async with asyncio.timeout(SECONDS):
                _, whole = await asyncio.gather(write(), read())
        assert whole == b"".join(parts)
