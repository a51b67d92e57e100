"""The connection to a worker: jobs are sent in fair order, and not if cancelled."""

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


class FakeWorker:
    """The worker's end of a link, which reads only on request."""

    def __init__(self, link, sock, received):
        self.link, self._socket = link, sock
        self.received = received  # messages that the link passed on
        self._decoder = MessageDecoder(ToWorker)

    def submit(self, number, size, connection):
        job = Job(0, 7, 5, bytes(size), caller=("", connection))
        self.link.submit(PendingJob(job, lambda result: None), number)

    async def read(self, numbers):
        """Return all messages until the jobs with these numbers have come."""
        loop, messages = asyncio.get_running_loop(), []
        async with asyncio.timeout(SECONDS):
            while {*numbers} - {m.number for m in messages if isinstance(m, Job)}:
                data = await loop.sock_recv(self._socket, 2**20)
                messages += [m for part in self._decoder.feed(data) for m in part]
        return messages


@asynccontextmanager
async def fake_worker():
    ours, theirs = socket.socketpair()
    received, lost = [], []
    link = WorkerLink(
        lambda link, message: received.append(message), lost.append, set()
    )
    with theirs:
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: link, sock=ours)
        yield FakeWorker(link, theirs, received)
    await wait_until(lambda: lost, "the link notices the end")


async def test_fair_order():
    """Another caller's job goes before those for which the socket has no room; all are
    sent, those of a caller in their order."""
    async with fake_worker() as worker:
        for number in range(MANY):
            worker.submit(number, LARGE, 1)
        await flush()
        worker.submit(MANY, SMALL, 2)
        await flush()
        messages = await worker.read(range(MANY + 1))
        numbers = [message.number for message in messages]
        assert numbers.index(MANY) < 3
        numbers.remove(MANY)
        assert numbers == list(range(MANY))
        assert {len(message.frames) for message in messages} == {LARGE, SMALL}


async def test_cancel():
    """A job that is cancelled before it is sent is dropped here, with its steps
    settled; one that was sent is cancelled in the worker."""
    async with fake_worker() as worker:
        for number in range(MANY):
            worker.submit(number, LARGE, number % 2)
        await flush()
        cancelled = [0, 3, 4, 5, 8, 9]
        for number in cancelled:
            worker.link.send(CancelJob(number))
        await flush()
        dropped = [m.number for m in worker.received if isinstance(m, JobFailure)]
        messages = await worker.read({*range(MANY)} - {*dropped})
    jobs = [m.number for m in messages if isinstance(m, Job)]
    sent = [m.number for m in messages if isinstance(m, CancelJob)]
    assert sorted(sent + dropped) == cancelled
    assert 0 in sent
    assert len(dropped) >= 4
    assert sorted(jobs + dropped) == list(range(MANY))
    reports = [m for m in worker.received if isinstance(m, BatchReport)]
    assert [(r.model, r.settled) for r in reports] == [(7, 5)] * len(dropped)


async def test_worker_is_gone():
    """When the worker is gone, nothing is sent and the jobs stay, to be retried."""
    async with fake_worker() as worker:
        for number in range(MANY):
            worker.submit(number, LARGE, 1)
        await flush()
    worker.submit(MANY, SMALL, 1)
    worker.link.send(CancelJob(1))
    await flush()
    assert worker.received == []
    assert len(worker.link.jobs) == MANY + 1
