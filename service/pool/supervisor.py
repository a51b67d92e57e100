"""The worker processes: started, told what to load, ended."""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, wait

from model.bundle.bundle import BundleError
from service.os_resources import available_cores
from service.pool import spawn
from service.pool.spawn import (
    Deadline,
    LoadTimeout,
    StartWorker,
    WorkerDied,
    WorkerHandle,
)
from service.settings import Settings
from service.worker.protocol import LoadModel, LoadResult

log = logging.getLogger(__name__)

END_SECONDS = 5.0  # for a worker to end
WAIT_SECONDS = 0.1  # between looks for a worker
TURN_SECONDS = 0.001  # for another thread to take its turn


class WorkerSupervisor:
    """One for each core; all load every model. Nothing here is for the event loop."""

    def __init__(
        self,
        settings: Settings,
        start: StartWorker = spawn.process,
        trial: StartWorker | None = None,
    ):
        """
        Args:
            trial: starts a process that tries each bundle before; None: none is tried.
        """
        self.all: list[WorkerHandle] = []
        self.closed = False
        self.load_failures: dict[
            int, str
        ] = {}  # models that a new one goes without, and why
        self._settings, self._start, self._trial = settings, start, trial
        self._wanted: dict[int, LoadModel] = {}  # by model; what a new worker loads
        self._coming: list[WorkerHandle] = []  # new ones, which load that
        self._skipped: set[int] = set()  # by the next one: the last hung in their load
        self._loading = threading.Lock()  # a new worker must miss no model

    def start(self) -> None:
        """Start the processes; they load what they need while others go on."""
        for _ in range(self._settings.workers or available_cores()):
            self.all.append(self._start(self._settings))

    def load(self, wanted: LoadModel) -> LoadResult:
        """Have all load a bundle; in the background one after another, so
        that the others have the machine to answer.

        Raises:
            WorkerDied: one did.
            BundleError: one can't load it, or not in time; with the reason.
        """
        if self._trial is not None:
            self._try(self._trial, wanted)
        while not self.closed:
            with self._loading:
                workers = list(self.all)  # one that dies leaves it meanwhile
                missing = [one for one in workers if wanted.model not in one.models]
                if missing:
                    turn = missing[:1] if wanted.background else missing
                    loaded = self._load(turn, wanted)
                elif workers:
                    self._wanted[wanted.model] = wanted
                    return loaded
            # Where all have died: others will come.
            time.sleep(TURN_SECONDS if workers else WAIT_SECONDS)
        raise BundleError("the service stops")

    def wants(self, model: int) -> bool:
        """Whether new ones load a model."""
        return model in self._wanted and model not in self.load_failures

    def is_loaded(self, model: int) -> bool:
        """Whether any has loaded a model."""
        return any(model in one.models for one in list(self.all))

    def forget(self, model: int) -> None:
        """New ones need not load a model."""
        self._wanted.pop(model, None)
        self.load_failures.pop(model, None)

    def start_loaded(self) -> WorkerHandle:
        """Another one, with all models that can be loaded now.

        Raises:
            BundleError: not now.
        """
        launched = self._started(self._start)
        self._coming.append(launched)
        try:
            self._load_all(launched)
        except BaseException:
            _end([launched])  # else nobody would
            raise
        finally:
            self._coming.remove(launched)
        return launched

    def drop(self, worker: WorkerHandle) -> None:
        """Count no more on one."""
        with contextlib.suppress(ValueError):  # dropped already
            self.all.remove(worker)
        worker.hang_up()

    def close(self) -> None:
        """End them."""
        self.closed = True
        _end([*self._coming, *self.all])  # in this order: one may pass from there

    def _started(self, begin: StartWorker) -> WorkerHandle:
        """A new process.

        Raises:
            BundleError: it does not come up in time.
        """
        made: Future[WorkerHandle] = Future()

        def start() -> None:
            try:
                launched = begin(self._settings)
            except BaseException as error:
                if made.set_running_or_notify_cancel():
                    made.set_exception(error)
                return
            if made.set_running_or_notify_cancel():
                made.set_result(launched)
            else:  # nobody waits for it any more
                _end([launched])

        threading.Thread(target=start, name="start", daemon=True).start()
        deadline = Deadline(self._settings.load_seconds)
        while not made.done() and deadline.left and not self.closed:
            wait([made], WAIT_SECONDS)
        if made.cancel():
            raise BundleError("a worker did not start in time")
        return made.result()

    def _load_all(self, launched: WorkerHandle) -> None:
        """Have a new one load what is wanted, and count on it from then on."""
        done = self._skipped
        while not self.closed:
            with self._loading:
                left = [one for one in self._wanted.values() if one.model not in done]
                if not left:
                    self._skipped = set()  # the one after it is to try them again
                    self.all.append(launched)
                    return
                done = {*done, left[0].model}
                self._reload(launched, left[0])
            time.sleep(TURN_SECONDS)
        raise BundleError("the service stops")

    def _try(self, start: StartWorker, wanted: LoadModel) -> None:
        """Have a process of its own load a bundle; it ends then, in whatever way.

        Raises:
            BundleError: as `load`.
        """
        deadline = Deadline(self._settings.load_seconds)
        launched = self._started(start)
        self._coming.append(launched)
        try:
            launched.ask(wanted, deadline)
            launched.told(wanted, deadline)
        finally:
            self._coming.remove(launched)
            launched.kill()
            _end([launched])

    def _load(self, workers: list[WorkerHandle], wanted: LoadModel) -> LoadResult:
        deadline = Deadline(self._settings.load_seconds)
        for worker in workers:
            worker.ask(wanted, deadline)
        answers: list[LoadResult] = []
        failures: list[BundleError] = []
        for worker in workers:
            try:
                answers.append(worker.told(wanted, deadline))
            except BundleError as error:
                failures.append(error)
                if isinstance(error, WorkerDied | LoadTimeout):
                    self.drop(worker)  # the next bundle must not be blamed for it
        if not failures:
            return answers[0]
        # What is certain goes before a death that may have had another cause.
        failures.sort(key=lambda error: isinstance(error, WorkerDied))
        try:
            raise failures[0]
        finally:
            failures.clear()  # else they would hold the workers, and these their files

    def _reload(self, launched: WorkerHandle, wanted: LoadModel) -> None:
        try:
            self._load([launched], wanted)
        except WorkerDied:
            raise
        except LoadTimeout as error:
            self.load_failures[wanted.model] = str(error)
            self._skipped.add(wanted.model)
            raise
        except BundleError as error:  # the others have it still
            log.error("a new worker goes without a model: %s", error)
        else:
            self.load_failures.pop(wanted.model, None)


def _end(workers: list[WorkerHandle]) -> None:
    """Have them end, or kill them."""
    for launched in workers:
        launched.hang_up()
    deadline = Deadline(END_SECONDS)
    for launched in workers:
        with contextlib.suppress(Exception):
            launched.wait(deadline.left)
            launched.kill()  # one that hangs would be waited for at our own end
            launched.wait(END_SECONDS)
