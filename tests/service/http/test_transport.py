"""A transport that sends what is written in one turn of the loop together, and ends
for sure."""

import asyncio
import socket
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from service.callers.memory_budget import MemoryBudget
from service.http import transport as module
from service.http.transport import CoalescingTransport, LingeringTransport
from service.telemetry.metrics import Metrics
from tests.support.pool import wait_until
from tests.support.servers import SECONDS

ACCOUNT = MemoryBudget(2**30, Metrics()).account()
KINDS = [LingeringTransport, CoalescingTransport]
LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop.new_event_loop, id="uvloop"),
]


class Kept(asyncio.Transport):
    """A transport that keeps what it is given to send, of which its other side leaves
    so many bytes unread, each time that it is asked."""

    def __init__(self, *unread):
        super().__init__({"peername": ("here", 1)})
        self.sent = []
        self.unread = list(unread)
        self.looks = 0
        self.closed = self.aborted = False

    def write(self, data):
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self):
        self.closed = True

    def abort(self):
        assert self.closed
        self.aborted = True

    def is_closing(self):
        return self.closed

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def get_write_buffer_size(self):
        self.looks += 1
        return self.unread.pop(0) if self.unread else 0


@given(st.lists(st.lists(st.binary(min_size=1), max_size=5), max_size=6))
def test_by_turns(parts):
    """All that is written in one turn of the loop is sent in one piece, in order, and
    nothing is sent in a turn without."""

    async def write():
        kept = Kept()
        gathered = CoalescingTransport(kept, ACCOUNT)
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
        gathered = CoalescingTransport(kept, ACCOUNT)
        buffer = bytearray(b"abc")
        gathered.write(buffer)
        gathered.write(memoryview(buffer)[1:])
        buffer[:] = b"xyz"
        await asyncio.sleep(0)
        assert kept.sent == [b"abcbc"]

    async def test_close(self):
        """To close it sends what was written before, and nothing twice."""
        kept = Kept()
        gathered = CoalescingTransport(kept, ACCOUNT)
        gathered.write(b"last")
        gathered.close()
        await asyncio.sleep(0)
        assert kept.sent == [b"last"]
        assert kept.closed

    @pytest.mark.parametrize("kind", KINDS)
    async def test_all_else(self, kind):
        """All else is what the transport itself says."""
        kept = Kept()
        made = kind(kept, ACCOUNT)
        assert made.get_extra_info("peername") == ("here", 1)
        assert not made.is_closing()
        made.close()
        assert made.is_closing()
        made.abort()
        assert kept.aborted

    async def test_over_a_socket(self):
        """Over a real socket the other side reads it all, in order."""
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        gathered = CoalescingTransport(transport, ACCOUNT)
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


@pytest.fixture
def _at_once(monkeypatch):
    """What lingers is looked after in each turn of the loop."""
    monkeypatch.setattr(module, "LINGER_SECONDS", 0)


def run(loop, work):
    """A coroutine on a new loop of a kind, within some time."""

    async def limited():
        async with asyncio.timeout(SECONDS):
            return await work()

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(limited())


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", KINDS)
class TestCutOff:
    @settings(max_examples=60)
    @given(left=st.lists(st.integers(1, 9), max_size=12))
    def test_progress(self, kind, left):
        """What is closed stays while its other side reads on, is cut off at the first
        look at which nothing has been read since the one before, and is looked after
        no more when all has been read."""
        kept = Kept(*left)

        async def close():
            made = kind(kept, ACCOUNT)
            made.close()
            assert kept.closed
            await turns(3 * len(left) + 20)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LINGER_SECONDS", 0)
            run(asyncio.new_event_loop, close)
        stuck = [now >= then for then, now in pairwise(left)]
        looks = stuck.index(True) + 2 if True in stuck else len(left) + 1
        assert kept.aborted == (True in stuck)
        assert kept.looks <= max(looks, 2)

    @pytest.mark.usefixtures("_at_once")
    @pytest.mark.parametrize("loop", LOOPS)
    def test_reads_nothing(self, kind, loop):
        """A real connection whose other side reads nothing is closed, cut off, and
        gone: nothing of what was written is kept."""
        ours, theirs = socket.socketpair()
        lost = []

        class Protocol(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.append(exc)

        async def close():
            made = asyncio.get_running_loop()
            plain, _ = await made.create_connection(Protocol, sock=ours)
            transport = kind(plain, ACCOUNT)
            transport.write(b"x" * 2**22)
            await asyncio.sleep(0)
            assert plain.get_write_buffer_size() > 0
            transport.close()
            await wait_until(lambda: lost, "it is gone")
            assert transport.get_write_buffer_size() == 0

        with theirs:
            run(loop, close)
            received = b"".join(iter(lambda: theirs.recv(2**20), b""))
        assert len(received) < 2**22

    @pytest.mark.parametrize("loop", LOOPS)
    def test_reads_all(self, kind, loop):
        """One whose other side reads gets all that was written before the close, and
        is cut off by nobody."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def close():
            made = asyncio.get_running_loop()
            plain, _ = await made.create_connection(asyncio.Protocol, sock=ours)
            transport = kind(plain, ACCOUNT)
            transport.write(b"x" * 2**22)
            transport.close()
            size = 0
            while data := await made.sock_recv(theirs, 2**16):
                size += len(data)
            await wait_until(lambda: plain.get_write_buffer_size() == 0, "it is gone")
            return size

        with theirs:
            assert run(loop, close) == 2**22

    @pytest.mark.usefixtures("_at_once")
    @pytest.mark.parametrize("loop", LOOPS)
    def test_gone(self, kind, loop):
        """One that was lost before its close, or is closed twice, ends quietly."""
        ours, theirs = socket.socketpair()
        failures, lost = [], []

        class Protocol(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.append(exc)

        async def close():
            made = asyncio.get_running_loop()
            made.set_exception_handler(lambda _, context: failures.append(context))
            plain, _ = await made.create_connection(Protocol, sock=ours)
            transport = kind(plain, ACCOUNT)
            theirs.close()
            await wait_until(lambda: lost, "it is gone")
            transport.close()
            transport.close()
            await turns(10)

        run(loop, close)
        assert failures == []
