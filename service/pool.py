"""The workers: started, told to load models, given jobs, replaced when they die."""

import asyncio
import contextlib
import itertools
import logging
import operator
import threading
import time
from collections.abc import Callable

from model.bundle import BundleError

from . import errors, launch
from .engine import available_cores
from .launch import Launch, Launched
from .link import Link
from .messages import (
    Answered,
    Cancel,
    Channel,
    Failed,
    FromWorker,
    Job,
    Load,
    Loaded,
    Ticked,
    Unload,
)
from .metrics import Metrics
from .settings import Settings

log = logging.getLogger(__name__)

END_SECONDS = 5.0  # for a worker to end
AGAIN_SECONDS = 1.0  # until one that died is replaced


class Pool:
    """A worker for each core; a job goes to the one with the fewest steps to do."""

    def __init__(
        self, settings: Settings, metrics: Metrics, start: Launch = launch.process
    ):
        self.ticked: dict[int, Callable[[Ticked], None]] = {}  # by model
        self._settings, self._metrics, self._start = settings, metrics, start
        self._launched: list[Launched] = []
        self._links: list[Link] = []
        self._folders: dict[int, str] = {}  # by model; what a new worker loads
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = threading.Lock()  # a new worker must miss no model
        self._closed = False

    def start(self) -> None:
        """Start the processes; they load what they need while others go on."""
        for _ in range(self._settings.workers or available_cores()):
            self._launched.append(self._start(self._settings))

    async def attach(self) -> None:
        """Take their answers on this event loop."""
        self._loop = asyncio.get_running_loop()
        for launched in list(self._launched):
            await self._attach(launched)

    @property
    def size(self) -> int:
        """Workers that compute."""
        return len(self._links)

    @property
    def alive(self) -> bool:
        """Some worker can compute, or will soon."""
        return bool(self._links or self._tasks)

    def load(self, model: int, folder: str, *, gently: bool = False) -> Loaded:
        """Have all workers load a bundle; not on the event loop.

        Args:
            gently: one after another, while the others have the machine to answer.

        Raises:
            BundleError: a worker can't, or dies of it; with the reason.
        """
        while not self._closed:
            with self._loading:
                if self._launched:
                    workers = list(self._launched)
                    turns = [[one] for one in workers] if gently else [workers]
                    try:
                        told = [self._load(turn, model, folder) for turn in turns]
                    except BundleError:
                        self.unload(model)  # some may have it
                        raise
                    self._folders[model] = folder
                    return told[0]
            time.sleep(AGAIN_SECONDS / 10)  # all have died: others will come
        raise BundleError("the service stops")

    def forget(self, model: int) -> None:
        """New workers need not load a model."""
        self._folders.pop(model, None)

    def unload(self, model: int) -> None:
        """Have the workers drop a model: nobody has it any more. From any thread."""
        self.forget(model)
        with contextlib.suppress(RuntimeError, AttributeError):  # no loop: at the end
            self._loop.call_soon_threadsafe(self._unload, model)

    def check(self) -> None:
        """That there is a worker.

        Raises:
            NotReady: none is left; one is being started.
        """
        if not self._links:
            told = "the workers are being started"
            raise errors.NotReady(told, headers={"Retry-After": "1"})

    def submit(
        self, job: Job, done: Callable[[Answered | Failed], None]
    ) -> tuple[Link, int]:
        """Give a job to the least busy worker.

        Args:
            done: called with what became of it.

        Returns: what `cancel` takes.
        """
        link = min(self._links, key=_left)
        link.add(job.model, job.steps)
        job.number = next(self._numbers)
        link.jobs[job.number] = done
        link.send(job)
        return link, job.number

    def cancel(self, given: tuple[Link, int]) -> None:
        """Drop a job, if it is not done."""
        link, number = given
        if number in link.jobs and link in self._links:
            link.send(Cancel(number))

    def close(self) -> None:
        """End the workers; not on the event loop."""
        self._closed = True
        workers = list(self._launched)  # one that is seen to go leaves it meanwhile
        for launched in workers:
            launched.hang_up()
        until = time.monotonic() + END_SECONDS
        for launched in workers:
            with contextlib.suppress(Exception):
                launched.wait(max(0, until - time.monotonic()))
                launched.kill()  # one that hangs would be waited for at our own end
                launched.wait(END_SECONDS)

    def _unload(self, model: int) -> None:
        self.ticked.pop(model, None)
        for link in self._links:
            link.send(Unload(model))
            link.steps.pop(model, None)

    def _load(self, workers: list[Launched], model: int, folder: str) -> Loaded:
        channels = [Channel(worker.control, Loaded) for worker in workers]
        for channel in channels:
            with contextlib.suppress(OSError):  # told below
                channel.send([Load(model, folder)])
        answers: list[Loaded] = []
        for worker, channel in zip(workers, channels, strict=True):
            try:
                answers += channel.receive()
            except (EOFError, OSError):
                self._forget(worker)  # the next bundle must not be blamed for it
                reason = f"{folder}: a worker died of loading it"
                answers.append(Loaded(model, error=reason))
        for told in answers:
            if told.error:
                raise BundleError(told.error)
        return answers[0]

    def _forget(self, worker: Launched) -> None:
        """Count no more on a worker."""
        with contextlib.suppress(ValueError):  # forgotten already
            self._launched.remove(worker)
        worker.hang_up()

    async def _attach(self, launched: Launched) -> None:
        loop = asyncio.get_running_loop()
        link = Link(self._receive, lambda link: self._lost(link, launched))
        sock = launched.jobs.dup()
        await loop.create_unix_connection(lambda: link, sock=sock)
        self._links.append(link)

    def _receive(self, link: Link, message: FromWorker) -> None:
        if isinstance(message, Ticked):
            link.add(message.model, -message.settled)
            self._tell(message)
        elif isinstance(message, Answered | Failed):
            link.jobs.pop(message.number)(message)

    def _tell(self, tick: Ticked) -> None:
        if tick.model in self.ticked:  # else nobody counts any more
            self.ticked[tick.model](tick)

    def _lost(self, link: Link, launched: Launched) -> None:
        """A worker has died: its jobs fail, and another takes its place."""
        self._links.remove(link)
        if self._closed:
            return
        log.error("a worker died", extra={"jobs": len(link.jobs)})
        self._metrics.worker_deaths.inc()
        self._forget(launched)
        for model, steps in link.steps.items():
            self._tell(Ticked(model, 0, 0, 0, 0.0, steps))
        for number, done in list(link.jobs.items()):
            done(Failed(number, "the worker died"))
        task = asyncio.get_running_loop().create_task(self._replace(launched))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, dead: Launched) -> None:
        await asyncio.to_thread(dead.wait, END_SECONDS)
        while not self._closed:
            await asyncio.sleep(AGAIN_SECONDS)
            begun = time.perf_counter()
            try:
                launched = await asyncio.to_thread(self._start_loaded)
            except (BundleError, OSError) as error:
                log.error("a new worker died", extra={"reason": str(error)})
                continue
            await self._attach(launched)
            seconds = round(time.perf_counter() - begun, 2)
            log.info("a new worker serves", extra={"seconds": seconds})
            return

    def _start_loaded(self) -> Launched:
        with self._loading:
            launched = self._start(self._settings)
            try:
                for model, folder in list(self._folders.items()):
                    self._load([launched], model, folder)
                if self._closed:
                    raise BundleError("the service stops")
            except BundleError:
                launched.hang_up()
                raise
            self._launched.append(launched)
        return launched


_left = operator.attrgetter("left")
