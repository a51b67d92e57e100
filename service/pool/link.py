"""The event loop's connection to one worker process."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

from service.callers.fair_queue import FairQueue
from service.pool.pending_jobs import PendingJob
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    FromWorker,
    Job,
    JobFailure,
    MessageDecoder,
    UnloadModel,
    encode,
)

Told = Job | CancelJob | UnloadModel

# Sent at a time. What the socket has no room for waits here, where it is fair.
PIECE_BYTES = 256 * 1024
BUFFER_BYTES = 64 * 1024  # of the transport, over which there is no room


class WorkerLink(asyncio.Protocol):
    """Sends jobs, and hands on what comes back."""

    def __init__(
        self,
        receive: Callable[["WorkerLink", FromWorker], None],
        lost: Callable[["WorkerLink"], None],
        models: set[int],
    ):
        """
        Args:
            models: that the worker has loaded; others change it.
        """
        self.left = 0  # steps that the worker has not computed yet
        self.steps: dict[int, int] = {}  # the same by model
        self.tickets: dict[int, PendingJob] = {}  # by the job's number
        self.blocking = 0  # jobs that let it do nothing else for long
        self.trying = -1  # the job that is computed alone, or was
        self.heard = time.monotonic()  # when it last said something, or was idle
        self.models = models
        self._incoming = MessageDecoder(FromWorker)
        self._receive, self._lost = receive, lost
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[Told] = []  # in this turn of the loop
        self._unsent: FairQueue[Job] = FairQueue(PIECE_BYTES)
        self._numbers: set[int] = set()  # of those that are not cancelled
        self._paused = False  # the socket has no room
        self._loop = asyncio.get_running_loop()

    def add(self, model: int, steps: int) -> None:
        """So many more steps are to be computed."""
        self.left += steps
        self.steps[model] = self.steps.get(model, 0) + steps

    def give(self, ticket: PendingJob, number: int) -> None:
        """Have a job computed, under that number."""
        job = ticket.job
        job.number, ticket.link = number, self
        self.add(job.model, job.steps)
        if not self.tickets:
            self.heard = time.monotonic()
        self.tickets[number] = ticket
        self.blocking += ticket.blocking
        self.send(job)

    def take(self, number: int) -> PendingJob:
        """A job is done, or not to be done any more."""
        ticket = self.tickets.pop(number)
        self.blocking -= ticket.blocking
        return ticket

    def send(self, message: Told) -> None:
        """Send it together with what else is sent in this turn of the loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        assert self._transport is not None
        if self._transport.is_closing():
            return  # those who wait are told of the worker's death
        size = sum([_size(one) for one in messages if isinstance(one, Job)])
        if size <= PIECE_BYTES and not self._unsent and not self._paused:
            self._write(messages)
            return
        for message in messages:
            if isinstance(message, Job):
                self._unsent.push(message.caller, message, _size(message))
                self._numbers.add(message.number)
            elif isinstance(message, CancelJob) and message.number in self._numbers:
                self._drop(message.number)
            else:
                self._write([message])  # of a few bytes, whatever room there is
        self._send_unsent()

    def _send_unsent(self) -> None:
        """Send jobs, in fair order, while there is room."""
        assert self._transport is not None
        while self._unsent and not self._paused and not self._transport.is_closing():
            jobs, size = [], 0
            while self._unsent and size < PIECE_BYTES:
                job = self._unsent.pop()
                if job.number in self._numbers:
                    self._numbers.remove(job.number)
                    jobs.append(job)
                    size += _size(job)
                else:
                    self._unsent.refund(job.caller, _size(job))
            if jobs:
                self._write(jobs)

    def _drop(self, number: int) -> None:
        """A job is cancelled that the worker hasn't heard of."""
        self._numbers.remove(number)
        job = self.tickets[number].job
        self._receive(self, BatchReport(job.model, 0, 0, 0, 0.0, job.steps))
        self._receive(self, JobFailure(number, "cancelled", dropped=True))

    def _write(self, messages: Sequence[Told]) -> None:
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
        self.heard = time.monotonic()
        for messages in self._incoming.feed(data):
            for message in messages:
                self._receive(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)


def _size(job: Job) -> int:
    return len(job.frames) + len(job.state)
