"""The event loop's connection to one worker, and the jobs that are pending there.

Poison-job isolation: after a crash, a worker's jobs are retried one at a time, so that
a second crash identifies the cause. No other request fails with it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional, cast

from service.callers.fair_queue import FairQueue
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    FromWorker,
    Job,
    JobFailure,
    JobResult,
    MessageDecoder,
    UnloadModel,
    encode,
)

Message = Job | CancelJob | UnloadModel
Done = Callable[[JobResult | JobFailure], None]

# Jobs are written in pieces of this size. Those for which the socket has no room wait
# here, where their order is still fair between callers.
PIECE_BYTES = 256 * 1024
BUFFER_BYTES = 64 * 1024  # of the transport; with more in it, the socket has no room
MAX_CRASHES = 3  # a job fails after so many crashes of workers that had it


@dataclass(slots=True, eq=False)
class PendingJob:
    """A job without an answer yet."""

    job: Job
    done: Done  # called with the answer
    link: Optional["WorkerLink"] = None  # None: it waits for a worker
    crashes: int = 0  # of workers that had it, whose cause is not known
    blocking: bool = False  # it occupies its worker for long

    def fail(self, reason: str, *, dropped: bool = False) -> None:
        self.done(JobFailure(self.job.number, reason, dropped=dropped))

    def report(self) -> BatchReport:
        """Return the report that the job's steps are no longer pending."""
        return settled_steps(self.job.model, self.job.steps)


def settled_steps(model: int, steps: int) -> BatchReport:
    """Return the report that steps of a model are no longer pending, though no engine
    call was made."""
    return BatchReport(model, 0, 0, 0, 0.0, steps)


def jobs_to_retry(jobs: list[PendingJob], isolated: int) -> list[PendingJob]:
    """Return the jobs of a crashed worker that are retried in isolation; the others
    fail.

    Args:
        isolated: number of the last isolated job. If it is still pending, it is the
            cause of the crash; otherwise each of the jobs may be.
    """
    known = any(pending.job.number == isolated for pending in jobs)
    retried = []
    for pending in jobs:
        pending.link = None
        pending.crashes += not known
        if pending.job.number == isolated or pending.crashes >= MAX_CRASHES:
            pending.fail("the worker died")
        else:
            pending.job.isolated = True
            retried.append(pending)
    return retried


class WorkerLink(asyncio.Protocol):
    """Sends jobs to a worker and passes its messages on."""

    def __init__(
        self,
        receive: Callable[["WorkerLink", FromWorker], None],
        lost: Callable[["WorkerLink"], None],
        models: set[int],
    ):
        """
        Args:
            receive: called with each message of the worker.
            lost: called when the worker is gone.
            models: that the worker has loaded; shared with its `WorkerHandle`.
        """
        self.pending_steps = 0  # that the worker has not computed yet
        self.pending_by_model: dict[int, int] = {}
        self.jobs: dict[int, PendingJob] = {}  # by number
        self.blocking_jobs = 0
        self.isolated_job = -1  # the last one that was started
        self.last_message = time.monotonic()  # from the worker, or when it got work
        self.models = models
        self._decoder = MessageDecoder(FromWorker)
        self._receive, self._lost = receive, lost
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[Message] = []  # in this iteration of the event loop
        self._unsent: FairQueue[Job] = FairQueue(PIECE_BYTES)
        self._unsent_numbers: set[int] = set()  # without those that are cancelled
        self._paused = False  # the socket has no room
        self._loop = asyncio.get_running_loop()

    def add_steps(self, model: int, steps: int) -> None:
        """Count pending steps; a negative number removes them."""
        self.pending_steps += steps
        self.pending_by_model[model] = self.pending_by_model.get(model, 0) + steps

    def submit(self, pending: PendingJob, number: int) -> None:
        """Send a job to the worker, under this number."""
        job = pending.job
        job.number, pending.link = number, self
        self.add_steps(job.model, job.steps)
        if not self.jobs:
            self.last_message = time.monotonic()
        self.jobs[number] = pending
        self.blocking_jobs += pending.blocking
        self.send(job)

    def pop(self, number: int) -> PendingJob:
        """Remove a job that is done, or will not be done."""
        pending = self.jobs.pop(number)
        self.blocking_jobs -= pending.blocking
        return pending

    def send(self, message: Message) -> None:
        """Send a message, together with all of this iteration of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        assert self._transport is not None
        if self._transport.is_closing():
            return  # `connection_lost` handles the jobs
        size = sum([_size(job) for job in messages if isinstance(job, Job)])
        if size <= PIECE_BYTES and not self._unsent and not self._paused:
            self._write(messages)
            return
        for message in messages:
            if isinstance(message, Job):
                self._unsent.push(message.caller, message, _size(message))
                self._unsent_numbers.add(message.number)
            elif (
                isinstance(message, CancelJob)
                and message.number in self._unsent_numbers
            ):
                self._drop_unsent(message.number)
            else:
                self._write([message])  # a few bytes, which need no room
        self._send_unsent()

    def _send_unsent(self) -> None:
        """Send jobs in fair order, while there is room."""
        assert self._transport is not None
        while self._unsent and not self._paused and not self._transport.is_closing():
            jobs, size = [], 0
            while self._unsent and size < PIECE_BYTES:
                job = self._unsent.pop()
                if job.number in self._unsent_numbers:
                    self._unsent_numbers.remove(job.number)
                    jobs.append(job)
                    size += _size(job)
                else:
                    self._unsent.refund(job.caller, _size(job))
            if jobs:
                self._write(jobs)

    def _drop_unsent(self, number: int) -> None:
        """Cancel a job that has not been sent."""
        self._unsent_numbers.remove(number)
        self._receive(self, self.jobs[number].report())
        self._receive(self, JobFailure(number, "cancelled", dropped=True))

    def _write(self, messages: Sequence[Message]) -> None:
        assert self._transport is not None
        self._transport.write(encode(messages))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(BUFFER_BYTES)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_unsent()

    def data_received(self, data: bytes) -> None:
        self.last_message = time.monotonic()
        for messages in self._decoder.feed(data):
            for message in messages:
                self._receive(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)


def _size(job: Job) -> int:
    return len(job.frames) + len(job.state)
