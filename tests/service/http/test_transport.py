"""Transports: coalesced writes, and a close that always ends."""

import asyncio
import socket
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from service.callers.memory_budget import MemoryBudget
from service.http import transport as module
from service.http.transport import CoalescingTransport, LingeringTransport
from service.telemetry.metrics import Metrics
from tests.support.pool import wait_until
from tests.support.servers import SECONDS

ACCOUNT = MemoryBudget(2**30, Metrics()).account()
KINDS = [LingeringTransport, CoalescingTransport]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class FakeTransport(asyncio.Transport):
    """Records what it is given to send. Each time that it is asked, so many bytes are
    unread."""

    def __init__(self, *unread):
        super().__init__({"peername": ("here", 1)})
        self.sent = []
        self.unread = list(unread)
        self.checks = 0
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
        self.checks += 1
        return self.unread.pop(0) if self.unread else 0


@given(st.lists(st.lists(st.binary(min_size=1), max_size=5), max_size=6))
def test_coalesced(turns):
    """All that is written in one turn of the event loop is sent at once, in order."""

    async def write():
        fake = FakeTransport()
        transport = CoalescingTransport(fake, ACCOUNT)
        for parts in turns:
            for part in parts:
                transport.write(part)
            assert len(fake.sent) < 10
            await asyncio.sleep(0)
        return fake.sent

    assert asyncio.run(write()) == [b"".join(parts) for parts in turns if parts]


@pytest.mark.anyio
class TestWrites:
    async def test_copies(self):
        """The writer may reuse its buffer."""
        fake = FakeTransport()
        transport = CoalescingTransport(fake, ACCOUNT)
        buffer = bytearray(b"abc")
        transport.write(buffer)
        transport.write(memoryview(buffer)[1:])
        buffer[:] = b"xyz"
        await asyncio.sleep(0)
        assert fake.sent == [b"abcbc"]

    async def test_close(self):
        """A close sends what was written before, once; the rest is the wrapped
        transport's."""
        fake = FakeTransport()
        transport = CoalescingTransport(fake, ACCOUNT)
        transport.write(b"last")
        transport.close()
        await asyncio.sleep(0)
        assert fake.sent == [b"last"]
        for kind in KINDS:
            fake = FakeTransport()
            transport = kind(fake, ACCOUNT)
            assert transport.get_extra_info("peername") == ("here", 1)
            assert not transport.is_closing()
            transport.close()
            assert fake.closed
            assert transport.is_closing()
            transport.abort()
            assert fake.aborted

    async def test_socket(self):
        """Over a real socket, the other side reads everything in order."""
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        wrapped, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport = CoalescingTransport(wrapped, ACCOUNT)
        parts = [bytes([number % 256]) * 5000 for number in range(300)]
        theirs.setblocking(False)

        async def write():
            for number, part in enumerate(parts):
                transport.write(part)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            transport.close()

        async def read():
            received = b""
            while data := await loop.sock_recv(theirs, 2**16):
                received += data
            return received

        with theirs:
            async with asyncio.timeout(SECONDS):
                _, received = await asyncio.gather(write(), read())
        assert received == b"".join(parts)


def run(loop, function):
    """Run a coroutine function on a new event loop of this kind."""

    async def limited():
        async with asyncio.timeout(SECONDS):
            return await function()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(limited())


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(scope="module", autouse=True)
def _no_delay():
    """Checks happen in every turn of the loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LINGER_SECONDS", 0)
        yield


@pytest.mark.parametrize("kind", KINDS)
class TestLinger:
    @given(unread=st.lists(st.integers(1, 9), max_size=12))
    def test_progress(self, kind, unread):
        """A closed transport stays while the other side reads. It is aborted at the first
        check without progress, and not checked after everything has been read."""
        fake = FakeTransport(*unread)

        async def close():
            kind(fake, ACCOUNT).close()
            assert fake.closed
            await turns(3 * len(unread) + 20)

        run("asyncio", close)
        stalled = [now >= before for before, now in pairwise(unread)]
        checks = stalled.index(True) + 2 if True in stalled else len(unread) + 1
        assert fake.aborted == (True in stalled)
        assert fake.checks <= max(checks, 2)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_socket(self, kind, loop):
        """A real connection is aborted if the other side reads nothing, and not if it
        reads all. A lost connection can be closed, also twice."""
        failures, lost = [], []

        class Protocol(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.append(exc)

        async def connect(ours):
            running = asyncio.get_running_loop()
            running.set_exception_handler(lambda _, context: failures.append(context))
            wrapped, _ = await running.create_connection(Protocol, sock=ours)
            return wrapped, kind(wrapped, ACCOUNT)

        async def unread(ours):
            wrapped, transport = await connect(ours)
            transport.write(b"x" * 2**22)
            await asyncio.sleep(0)
            assert wrapped.get_write_buffer_size() > 0
            transport.close()
            await wait_until(lambda: lost, "it is gone")
            assert transport.get_write_buffer_size() == 0

        async def read(ours, theirs):
            wrapped, transport = await connect(ours)
            transport.write(b"x" * 2**22)
            size, running = 0, asyncio.get_running_loop()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "LINGER_SECONDS", SECONDS)
                transport.close()
            while data := await running.sock_recv(theirs, 2**16):
                size += len(data)
            await wait_until(lambda: wrapped.get_write_buffer_size() == 0, "it is gone")
            return size

        async def close_lost(ours, theirs):
            _, transport = await connect(ours)
            theirs.close()
            await wait_until(lambda: lost, "it is gone")
            transport.close()
            transport.close()
            await turns(10)

        ours, theirs = socket.socketpair()
        with theirs:
            run(loop, lambda: unread(ours))
            received = b"".join(iter(lambda: theirs.recv(2**20), b""))
        assert len(received) < 2**22
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            assert run(loop, lambda: read(ours, theirs)) == 2**22
        lost.clear()
        ours, theirs = socket.socketpair()
        run(loop, lambda: close_lost(ours, theirs))
        assert failures == []
