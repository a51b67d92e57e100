"""The worker pool on the event loop: dispatches jobs, and replaces workers that die."""

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
from service.pool.link import (
    Done,
    PendingJob,
    WorkerLink,
    jobs_to_retry,
    settled_steps,
)
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

RESTART_SECONDS = 1.0  # before a worker that died is replaced
UNAVAILABLE_SECONDS = 60.0  # without workers, after which the pool is not `alive`
RECENT_SECONDS = 5.0  # a model is in use for so long after its last short job
CALL_STEPS = 1_000  # an engine call of more steps blocks its worker for long
CHECKS = 4  # in the time after which a silent worker counts as hanging


class Pool:
    """Workers, one for each core. A job goes to the worker with the fewest pending
    steps, of those that have loaded its model."""

    def __init__(
        self, settings: Settings, metrics: Metrics, start: StartWorker = spawn.process
    ):
        """
        Args:
            start: starts a worker. With another function than the default, bundles are
                loaded without a trial.
        """
        self.on_batch: dict[int, Callable[[BatchReport], None]] = {}  # by model
        trial = spawn.trial if start is spawn.process else None
        self.workers = WorkerSupervisor(settings, start, trial)
        self._metrics = metrics
        self._links: list[WorkerLink] = []
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()  # that replace workers
        self._unloaded: set[int] = set()
        self._unassigned: list[PendingJob] = []  # for which there is no worker
        self._last_used: dict[int, float] = {}  # by model, of its last short job
        self._starter = ThreadPoolExecutor(1, "starter")
        self.last_refusal = -math.inf  # of any model, of `time.perf_counter`
        self._stall_seconds, self._last_death = settings.stall_seconds, time.monotonic()

    def start(self) -> None:
        """Start the workers. They import what they need while the caller goes on."""
        self.workers.start()

    async def attach(self) -> None:
        """Connect the workers to this event loop."""
        self._loop = asyncio.get_running_loop()
        for worker in list(self.workers.all):
            await self._attach(worker)

    @property
    def size(self) -> int:
        """The number of workers that take jobs."""
        return len(self._links)

    @property
    def alive(self) -> bool:
        """True if a worker takes jobs, or probably will soon."""
        patient = time.monotonic() < self._last_death + UNAVAILABLE_SECONDS
        return bool(self._links or (self._tasks and patient))

    def load(
        self, model: int, folder: str, digest: str = "", *, background: bool = False
    ) -> LoadResult:
        """Load a bundle in all workers. This blocks: do not call it on the event loop.

        Args:
            digest: the bundle must have this digest; "" for any.
            background: other models are serving requests meanwhile.

        Raises:
            BundleError, WorkerDied: as `WorkerSupervisor.load`; no worker keeps it.
        """
        try:
            return self.workers.load(LoadModel(model, folder, digest, background))
        except BundleError:
            self.unload(model)  # some workers may have loaded it
            raise

    def unload(self, model: int) -> None:
        """Drop a model from all workers. Thread-safe."""
        self.workers.forget(model)
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._unload, model)

    def check(self, model: int) -> None:
        """Check that some worker has a model, or soon will.

        Raises:
            NotReady: none has.
        """
        loaded = any(model in link.models for link in self._links)
        if not loaded and not (self._tasks and self.workers.will_load(model)):
            detail = "the workers are being started"
            raise errors.NotReady(detail, headers={"Retry-After": "1"})

    def submit(
        self, job: Job, done: Done, *, uninterruptible: bool = False
    ) -> PendingJob:
        """Give a job to a worker; call `check` first.

        Args:
            done: called with the answer.
            uninterruptible: the job takes a single engine call for all of its steps.

        Returns:
            the argument for `cancel`.
        """
        blocking = uninterruptible and job.steps > CALL_STEPS
        pending = PendingJob(job, done, blocking=blocking)
        if not blocking:
            self._last_used[job.model] = time.monotonic()
        self._dispatch(pending)
        return pending

    def cancel(self, pending: PendingJob) -> None:
        """Drop a job, if it is not done."""
        link, number = pending.link, pending.job.number
        if link is not None and number in link.jobs:
            link.send(CancelJob(number))
        elif pending in self._unassigned:
            self._unassigned.remove(pending)
            self._drop(pending, "cancelled")

    def close(self) -> None:
        """End the workers. This blocks: do not call it on the event loop."""
        self.workers.close()

    def _dispatch(self, pending: PendingJob) -> None:
        model = pending.job.model
        links = [link for link in self._links if model in link.models]
        if links:
            link = min(self._eligible(pending, links), key=_pending_steps)
            link.submit(pending, next(self._numbers))
        else:
            self._unassigned.append(pending)  # until another worker has started

    def _eligible(
        self, pending: PendingJob, links: list[WorkerLink]
    ) -> list[WorkerLink]:
        """Return the workers that a job may go to. A job avoids workers that are
        blocked for long, and a blocking job leaves a worker for other models."""
        free = [link for link in links if not link.blocking_jobs]
        if not pending.blocking:
            return free or links
        recent = time.monotonic() - RECENT_SECONDS
        others_in_use = any(
            last_used > recent
            for model, last_used in self._last_used.items()
            if model != pending.job.model
        )
        if others_in_use and len(free) <= 1:
            return [link for link in links if link.blocking_jobs] or links
        return links

    def _drop(self, pending: PendingJob, reason: str) -> None:
        """Fail a job that has no worker."""
        self._report(pending.report())
        pending.fail(reason, dropped=True)

    def _unload(self, model: int) -> None:
        self.on_batch.pop(model, None)
        self._last_used.pop(model, None)
        self._unloaded.add(model)
        for link in self._links:
            self._unload_from(link, model)

    def _unload_from(self, link: WorkerLink, model: int) -> None:
        link.models.discard(model)
        link.pending_by_model.pop(model, None)
        link.send(UnloadModel(model))

    async def _attach(self, worker: WorkerHandle) -> None:
        link = WorkerLink(
            self._receive, lambda link: self._lost(link, worker), worker.models
        )
        sock = worker.jobs.dup()
        await self._loop.create_unix_connection(lambda: link, sock=sock)
        self._links.append(link)
        for model in worker.models & self._unloaded:
            self._unload_from(link, model)  # it was unloaded before there was a link
        self._watch(link, worker)
        unassigned, self._unassigned = self._unassigned, []
        for pending in unassigned:
            in_time = pending.job.deadline > time.perf_counter()
            if in_time and self.workers.will_load(pending.job.model):
                self._dispatch(pending)
            else:
                self._drop(pending, "no worker in time")

    def _watch(
        self, link: WorkerLink, worker: WorkerHandle, due: float = math.inf
    ) -> None:
        """Kill a worker that has jobs and sends nothing, and check again later."""
        if link not in self._links:
            return
        seconds = self._stall_seconds / CHECKS
        if time.monotonic() > due + seconds:  # this check is late: the machine stalled
            link.last_message = time.monotonic()
        stalled = time.monotonic() > link.last_message + self._stall_seconds
        if link.jobs and stalled:
            log.error("a worker hangs", extra={"jobs": len(link.jobs)})
            worker.kill()
        else:
            due = time.monotonic() + seconds
            self._loop.call_later(seconds, self._watch, link, worker, due)

    def _receive(self, link: WorkerLink, message: FromWorker) -> None:
        if isinstance(message, BatchReport):
            link.add_steps(message.model, -message.settled)
            self._report(message)
        elif isinstance(message, JobResult | JobFailure):
            link.pop(message.number).done(message)
        elif isinstance(message, IsolatedJobStarted):
            link.isolated_job = message.number

    def _report(self, report: BatchReport) -> None:
        if report.model in self.on_batch:  # else the model was unloaded
            self.on_batch[report.model](report)

    def _lost(self, link: WorkerLink, worker: WorkerHandle) -> None:
        """Retry the jobs of a worker that died, and replace it."""
        self._links.remove(link)
        if self.workers.closed:
            return
        self._last_death = time.monotonic()
        log.error("a worker died", extra={"jobs": len(link.jobs)})
        self._metrics.worker_deaths.inc()
        self.workers.remove(worker)
        retried = jobs_to_retry(list(link.jobs.values()), link.isolated_job)
        for pending in retried:  # they start over, so all of their steps are pending
            link.add_steps(pending.job.model, -pending.job.steps)
        for model, steps in link.pending_by_model.items():
            self._report(settled_steps(model, steps))
        task = self._loop.create_task(self._replace(worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for pending in retried:
            self._dispatch(pending)

    async def _replace(self, dead: WorkerHandle) -> None:
        in_thread = self._loop.run_in_executor
        await in_thread(self._starter, dead.wait, END_SECONDS)
        while not self.workers.closed:
            await asyncio.sleep(RESTART_SECONDS)
            started = time.perf_counter()
            try:
                worker = await in_thread(self._starter, self.workers.start_loaded)
                await self._attach(worker)
            except Exception as error:  # any: it is tried again
                log.error("a new worker died", extra={"reason": str(error)})
                continue
            seconds = round(time.perf_counter() - started, 2)
            log.info("a new worker serves", extra={"seconds": seconds})
            return


_pending_steps = operator.attrgetter("pending_steps")
