"""The workers as the event loop has them: given jobs, replaced when they die."""

import asyncio
import contextlib
import itertools
import logging
import math
import operator
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from model.bundle.bundle import BundleError
from service import errors
from service.pool import spawn
from service.pool.link import WorkerLink
from service.pool.pending_jobs import Done, PendingJob, jobs_to_retry
from service.pool.spawn import StartWorker, WorkerHandle
from service.pool.supervisor import END_SECONDS, WorkerSupervisor
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    FromWorker,
    IsolatedJobStarted,
    Job,
    JobFailure,
    JobResult,
    LoadModel,
    LoadResult,
    UnloadModel,
)

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # until one that died is replaced
SOON_SECONDS = 60.0  # without any, after which there won't be one soon
RECENT_SECONDS = 5.0  # for which a model that was asked is taken to be in use
CALL_STEPS = 1_000  # more in one engine call hold up all others of its worker for long
LOOKS = 4  # in the time after which a worker that says nothing hangs


class Pool:
    """A worker for each core; each job goes to the one with the fewest steps to
    compute, of those that have its model."""

    def __init__(
        self, settings: Settings, metrics: Metrics, start: StartWorker = spawn.process
    ):
        self.on_batch: dict[int, Callable[[BatchReport], None]] = {}  # by model
        own = start is spawn.process  # else the caller's engines are of no bundle
        self.workers = WorkerSupervisor(settings, start, spawn.trial if own else None)
        self._metrics = metrics
        self._links: list[WorkerLink] = []
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unloaded: set[int] = set()
        self._orphans: list[PendingJob] = []  # without a worker
        self._asked: dict[int, float] = {}  # by model, when its last short job came
        self._starter = ThreadPoolExecutor(1, "starter")
        self._stall, self._since = settings.stall_seconds, time.monotonic()

    def start(self) -> None:
        """Start the processes; they load what they need while others go on."""
        self.workers.start()

    async def attach(self) -> None:
        """Take their answers on this event loop."""
        self._loop = asyncio.get_running_loop()
        for launched in list(self.workers.all):
            await self._attach(launched)

    @property
    def size(self) -> int:
        """Workers that compute."""
        return len(self._links)

    @property
    def alive(self) -> bool:
        """Some worker can compute, or will soon."""
        soon = self._tasks and time.monotonic() < self._since + SOON_SECONDS
        return bool(self._links or soon)

    def load(
        self, model: int, folder: str, digest: str = "", *, background: bool = False
    ) -> LoadResult:
        """Have all workers load a bundle; not on the event loop.

        Args:
            digest: that the bundle must have.
            background: requests are answered meanwhile.

        Raises:
            BundleError, WorkerDied: as `WorkerSupervisor.load`; none of them has it then.
        """
        try:
            return self.workers.load(LoadModel(model, folder, digest, background))
        except BundleError:
            self.unload(model)  # some may have it
            raise

    def forget(self, model: int) -> None:
        """New workers need not load a model."""
        self.workers.forget(model)

    def unload(self, model: int) -> None:
        """Have the workers drop a model: nobody has it any more. From any thread."""
        self.forget(model)
        with contextlib.suppress(RuntimeError, AttributeError):  # no loop: at the end
            self._loop.call_soon_threadsafe(self._unload, model)

    def check(self, model: int) -> None:
        """That there is a worker which has a model, or will be soon.

        Raises:
            NotReady: there isn't.
        """
        has = any(model in link.models for link in self._links)
        if not has and not (self._tasks and self.workers.wants(model)):
            told = "the workers are being started"
            raise errors.NotReady(told, headers={"Retry-After": "1"})

    def submit(
        self, job: Job, done: Done, *, uninterruptible: bool = False
    ) -> PendingJob:
        """Give a job to a worker; there must be one (see `check`).

        Args:
            done: called with what became of it.
            uninterruptible: one engine call is needed for all of its steps.

        Returns:
            What `cancel` takes.
        """
        blocking = uninterruptible and job.steps > CALL_STEPS
        ticket = PendingJob(job, done, blocking=blocking)
        if not blocking:
            self._asked[job.model] = time.monotonic()
        self._give(ticket)
        return ticket

    def cancel(self, ticket: PendingJob) -> None:
        """Drop a job, if it is not done."""
        link, number = ticket.link, ticket.job.number
        if link is not None and number in link.tickets:
            link.send(CancelJob(number))
        elif ticket in self._orphans:
            self._orphans.remove(ticket)
            job = ticket.job
            self._tell(BatchReport(job.model, 0, 0, 0, 0.0, job.steps))
            ticket.done(JobFailure(job.number, "cancelled", dropped=True))

    def _give(self, ticket: PendingJob) -> None:
        model = ticket.job.model
        able = [link for link in self._links if model in link.models]
        if able:
            link = min(self._open(ticket, able), key=_left)
            link.give(ticket, next(self._numbers))
        else:
            self._orphans.append(ticket)  # another worker is being started

    def _open(self, ticket: PendingJob, able: list[WorkerLink]) -> list[WorkerLink]:
        """Those of some workers that a job may go to: where it isn't held up for long
        by others, and doesn't hold up other models' jobs in all of them."""
        free = [link for link in able if not link.blocking]
        if not ticket.blocking:
            return free or able
        since = time.monotonic() - RECENT_SECONDS
        others = any(
            asked > since
            for model, asked in self._asked.items()
            if model != ticket.job.model
        )
        if others and len(free) <= 1:
            return [link for link in able if link.blocking] or able
        return able

    def close(self) -> None:
        """End the workers; not on the event loop."""
        self.workers.close()

    def _unload(self, model: int) -> None:
        self.on_batch.pop(model, None)
        self._asked.pop(model, None)
        self._unloaded.add(model)
        for link in self._links:
            self._drop(link, model)

    def _drop(self, link: WorkerLink, model: int) -> None:
        link.models.discard(model)
        link.steps.pop(model, None)
        link.send(UnloadModel(model))

    async def _attach(self, launched: WorkerHandle) -> None:
        link = WorkerLink(
            self._receive, lambda link: self._lost(link, launched), launched.models
        )
        sock = launched.jobs.dup()
        await self._loop.create_unix_connection(lambda: link, sock=sock)
        self._links.append(link)
        for model in launched.models & self._unloaded:
            self._drop(link, model)  # it could not be told before
        self._watch(link, launched)
        orphans, self._orphans = self._orphans, []
        for ticket in orphans:
            job = ticket.job
            if job.until > time.perf_counter() and self.workers.wants(job.model):
                self._give(ticket)
            else:
                self._tell(BatchReport(job.model, 0, 0, 0, 0.0, job.steps))
                ticket.done(JobFailure(job.number, "no worker in time", dropped=True))

    def _watch(
        self, link: WorkerLink, launched: WorkerHandle, due: float = math.inf
    ) -> None:
        """Kill a worker that has work and says nothing."""
        if link not in self._links:
            return
        seconds = self._stall / LOOKS
        if time.monotonic() > due + seconds:  # all stood still, not only that one
            link.heard = time.monotonic()
        if link.tickets and time.monotonic() > link.heard + self._stall:
            log.error("a worker hangs", extra={"jobs": len(link.tickets)})
            launched.kill()
        else:
            due = time.monotonic() + seconds
            self._loop.call_later(seconds, self._watch, link, launched, due)

    def _receive(self, link: WorkerLink, message: FromWorker) -> None:
        if isinstance(message, BatchReport):
            link.add(message.model, -message.settled)
            self._tell(message)
        elif isinstance(message, JobResult | JobFailure):
            link.take(message.number).done(message)
        elif isinstance(message, IsolatedJobStarted):
            link.trying = message.number

    def _tell(self, tick: BatchReport) -> None:
        if tick.model in self.on_batch:  # else nobody counts any more
            self.on_batch[tick.model](tick)

    def _lost(self, link: WorkerLink, launched: WorkerHandle) -> None:
        """A worker has died: another takes its place."""
        self._links.remove(link)
        if self.workers.closed:
            return
        self._since = time.monotonic()
        log.error("a worker died", extra={"jobs": len(link.tickets)})
        self._metrics.worker_deaths.inc()
        self.workers.drop(launched)
        again = jobs_to_retry(list(link.tickets.values()), link.trying)
        for ticket in again:  # from its first step
            link.add(ticket.job.model, -ticket.job.steps)
        for model, steps in link.steps.items():
            self._tell(BatchReport(model, 0, 0, 0, 0.0, steps))
        task = self._loop.create_task(self._replace(launched))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for ticket in again:
            self._give(ticket)

    async def _replace(self, dead: WorkerHandle) -> None:
        aside = self._loop.run_in_executor
        await aside(self._starter, dead.wait, END_SECONDS)
        while not self.workers.closed:
            await asyncio.sleep(AGAIN_SECONDS)
            begun = time.perf_counter()
            try:
                launched = await aside(self._starter, self.workers.start_loaded)
                await self._attach(launched)
            except Exception as error:  # whatever it is: it is tried again
                log.error("a new worker died", extra={"reason": str(error)})
                continue
            seconds = round(time.perf_counter() - begun, 2)
            log.info("a new worker serves", extra={"seconds": seconds})
            return


_left = operator.attrgetter("left")
