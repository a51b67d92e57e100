"""What waits to be sent to a worker: fair between callers, and not sent where it is
cancelled."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from service.pool.link import PIECE_BYTES, PendingJob, WorkerLink
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    Job,
    JobFailure,
    MessageDecoder,
    ToWorker,
)
from tests.support.pool import flush, wait_until
from tests.support.servers import SECONDS

pytestmark = pytest.mark.anyio
LARGE, SMALL = 3 * PIECE_BYTES, 10  # bytes of a job
MANY = 20


class Worker:
    """The other end, which reads when it is told to."""

    def __init__(self, link, sock, told):
        self.link, self._socket, self.told = link, sock, told
        self._incoming = MessageDecoder(ToWorker)

    def give(self, number, size, connection):
        job = Job(0, 7, 5, bytes(size), caller=("", connection))
        self.link.submit(PendingJob(job, lambda told: None), number)

    async def read(self, numbers):
        """All messages until the jobs of these numbers have come."""
        loop, messages = asyncio.get_running_loop(), []
        async with asyncio.timeout(SECONDS):
            while {*numbers} - {one.number for one in messages if isinstance(one, Job)}:
                data = await loop.sock_recv(self._socket, 2**20)
                messages += [one for some in self._incoming.feed(data) for one in some]
        return messages


@asynccontextmanager
async def worker():
    """A link and its worker, until the block ends."""
    ours, theirs = socket.socketpair()
    told, lost = [], []
    link = WorkerLink(lambda link, message: told.append(message), lost.append, set())
    with theirs:
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: link, sock=ours)
        yield Worker(link, theirs, told)
    await wait_until(lambda: lost, "the link hears of it")


async def test_fair():
    """A job of another caller goes before those that the socket has no room for; and
    all are sent, those of a caller in their order."""
    async with worker() as made:
        for number in range(MANY):
            made.give(number, LARGE, 1)
        await flush()
        made.give(MANY, SMALL, 2)
        await flush()
        messages = await made.read(range(MANY + 1))
        numbers = [message.number for message in messages]
        assert numbers.index(MANY) < 3
        numbers.remove(MANY)
        assert numbers == list(range(MANY))
        assert {len(one.frames) for one in messages} == {LARGE, SMALL}


async def test_cancelled():
    """A job that is cancelled before it is sent is told to have been dropped, with what
    it would have taken, and isn't sent; one that was sent is cancelled there."""
    async with worker() as made:
        for number in range(MANY):
            made.give(number, LARGE, number % 2)
        await flush()
        gone = [0, 3, 4, 5, 8, 9]
        for number in gone:
            made.link.send(CancelJob(number))
        await flush()
        dropped = [one.number for one in made.told if isinstance(one, JobFailure)]
        messages = await made.read({*range(MANY)} - {*dropped})
    jobs = [one.number for one in messages if isinstance(one, Job)]
    cancelled = [one.number for one in messages if isinstance(one, CancelJob)]
    assert sorted(cancelled + dropped) == gone
    assert 0 in cancelled
    assert len(dropped) >= 4
    assert sorted(jobs + dropped) == list(range(MANY))
    ticks = [one for one in made.told if isinstance(one, BatchReport)]
    assert [(one.model, one.settled) for one in ticks] == [(7, 5)] * len(dropped)


async def test_worker_is_gone():
    """When the worker goes, nothing more is sent, and nobody is told for it."""
    async with worker() as made:
        for number in range(MANY):
            made.give(number, LARGE, 1)
        await flush()
    made.give(MANY, SMALL, 1)
    made.link.send(CancelJob(1))
    await flush()
    assert made.told == []
    assert len(made.link.jobs) == MANY + 1
