"""Starts and ends the worker processes, and loads models in all of them."""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, wait

import msgspec

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

END_SECONDS = 5.0  # for a worker to end before it is killed
POLL_SECONDS = 0.1  # between checks whether a worker has started
YIELD_SECONDS = 0.001  # so that another thread can take the lock


class WorkerSupervisor:
    """The workers, one for each core, each of which loads every model. All methods
    block: do not call them on the event loop."""

    def __init__(
        self,
        settings: Settings,
        start: StartWorker = spawn.process,
        trial: StartWorker | None = None,
    ):
        """
        Args:
            trial: starts a process that tries a bundle before the workers load it.
        """
        self.all: list[WorkerHandle] = []
        self.closed = False
        self.load_failures: dict[int, str] = {}  # of models that a new worker lacks
        self._settings, self._start, self._trial = settings, start, trial
        self._models: dict[int, LoadModel] = {}  # that a new worker loads
        self._starting: list[WorkerHandle] = []  # new workers that load models
        self._threads: set[threading.Thread] = set()  # that start a worker
        self._skipped: set[int] = set()  # by the next new worker: the last one hung
        self._loading = threading.Lock()  # so that a new worker misses no model

    def start(self) -> None:
        """Start the processes. They import what they need while the caller goes on."""
        for _ in range(self._settings.workers or available_cores()):
            self.all.append(self._start(self._settings))

    def load(self, request: LoadModel) -> LoadResult:
        """Load a bundle in all workers; in the background in one after another, so
        that the others serve requests.

        Raises:
            WorkerDied: a worker died of it, perhaps.
            BundleError: a worker cannot load it, or not in time; with the reason.
        """
        chosen: LoadResult | None = None  # by the first process to load it, for all
        if self._trial is not None:
            chosen = self._run_trial(self._trial, request)
            request = msgspec.structs.replace(request, precision=chosen.precision)
        while not self.closed:
            with self._loading:
                workers = list(self.all)  # the list loses a worker that dies meanwhile
                missing = [w for w in workers if request.model not in w.models]
                if missing:
                    undecided = chosen is None and self._settings.precision == "auto"
                    if undecided or request.background:
                        missing = missing[:1]
                    result = self._load_in(missing, request)
                    chosen = chosen or result
                    request = msgspec.structs.replace(
                        request, precision=chosen.precision
                    )
                elif workers and chosen is not None:
                    self._models[request.model] = request
                    return chosen
            # If all workers have died, wait for others.
            time.sleep(YIELD_SECONDS if workers else POLL_SECONDS)
        raise BundleError("the service stops")

    def will_load(self, model: int) -> bool:
        """Return whether new workers load a model."""
        return model in self._models and model not in self.load_failures

    def is_loaded(self, model: int) -> bool:
        """Return whether some worker has loaded a model."""
        return any(model in worker.models for worker in list(self.all))

    def forget(self, model: int) -> None:
        """Do not load a model in new workers."""
        self._models.pop(model, None)
        self.load_failures.pop(model, None)

    def start_loaded(self) -> WorkerHandle:
        """Start another worker and load all models in it, as far as possible.

        Raises:
            BundleError: it did not start in time, died or hung; try again.
        """
        worker = self._start_in_time(self._start)
        self._starting.append(worker)
        try:
            self._load_all(worker)
        except BaseException:
            _end([worker])  # no one else has it
            raise
        finally:
            self._starting.remove(worker)
        return worker

    def remove(self, worker: WorkerHandle) -> None:
        """Stop using a worker."""
        with contextlib.suppress(ValueError):  # it was removed before
            self.all.remove(worker)
        worker.close()

    def close(self) -> None:
        """End all workers."""
        self.closed = True
        # In this order, because a worker may move from the first list to the second.
        _end([*self._starting, *self.all])
        # A process that starts now ends when its sockets are closed. At the interpreter's
        # exit its thread would stop before that, and the exit would wait for the process.
        deadline = Deadline(END_SECONDS)
        for thread in list(self._threads):
            with contextlib.suppress(
                RuntimeError
            ):  # it starts just now, and ends at once
                thread.join(deadline.remaining)

    def _start_in_time(self, start: StartWorker) -> WorkerHandle:
        """Start a process in a thread, since the start itself may hang.

        Raises:
            BundleError: it did not start in time, or the service stops.
        """
        future: Future[WorkerHandle] = Future()

        def run() -> None:
            try:
                if not self.closed:
                    self._start_into(future, start)
            finally:
                self._threads.discard(thread)

        thread = threading.Thread(target=run, name="start", daemon=True)
        self._threads.add(thread)
        thread.start()
        deadline = Deadline(self._settings.load_seconds)
        while not future.done() and deadline.remaining and not self.closed:
            wait([future], POLL_SECONDS)
        if future.cancel():
            stops = "the service stops"
            raise BundleError(
                stops if self.closed else "a worker did not start in time"
            )
        return future.result()

    def _start_into(self, future: "Future[WorkerHandle]", start: StartWorker) -> None:
        try:
            worker = start(self._settings)
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        if future.set_running_or_notify_cancel():
            future.set_result(worker)
        else:  # it is too late: the future was cancelled
            _end([worker])

    def _load_all(self, worker: WorkerHandle) -> None:
        """Load all models in a new worker, and add it to the workers in use."""
        done = self._skipped
        while not self.closed:
            with self._loading:
                missing = [r for r in self._models.values() if r.model not in done]
                if not missing:
                    self._skipped = set()  # the next new worker tries them again
                    self.all.append(worker)
                    return
                done = {*done, missing[0].model}
                self._load_in_new(worker, missing[0])
            time.sleep(YIELD_SECONDS)
        raise BundleError("the service stops")

    def _run_trial(self, start: StartWorker, request: LoadModel) -> LoadResult:
        """Load a bundle in a process of its own, which ends afterwards.

        Raises:
            BundleError: as `load`.
        """
        deadline = Deadline(self._settings.load_seconds)
        worker = self._start_in_time(start)
        self._starting.append(worker)
        try:
            if self.closed:  # `close` has not seen this worker
                raise BundleError("the service stops")
            worker.request_load(request, deadline)
            return worker.wait_loaded(request, deadline)
        finally:
            self._starting.remove(worker)
            worker.kill()
            _end([worker])

    def _load_in(self, workers: list[WorkerHandle], request: LoadModel) -> LoadResult:
        deadline = Deadline(self._settings.load_seconds)
        for worker in workers:
            worker.request_load(request, deadline)
        results: list[LoadResult] = []
        failures: list[BundleError] = []
        for worker in workers:
            try:
                results.append(worker.wait_loaded(request, deadline))
            except BundleError as error:
                failures.append(error)
                if isinstance(error, WorkerDied | LoadTimeout):
                    self.remove(worker)  # so that the next bundle is not blamed for it
        if not failures:
            return results[0]
        # A certain failure goes before a death, which may have another cause.
        failures.sort(key=lambda error: isinstance(error, WorkerDied))
        try:
            raise failures[0]
        finally:
            failures.clear()  # tracebacks would keep the workers and their sockets

    def _load_in_new(self, worker: WorkerHandle, request: LoadModel) -> None:
        """Load a model in a new worker. A model that fails is left out: the other
        workers still serve it."""
        try:
            self._load_in([worker], request)
        except WorkerDied:
            raise
        except LoadTimeout as error:
            self.load_failures[request.model] = str(error)
            self._skipped.add(request.model)
            raise
        except BundleError as error:
            log.error("a new worker goes without a model: %s", error)
        else:
            self.load_failures.pop(request.model, None)


def _end(workers: list[WorkerHandle]) -> None:
    """End workers, and kill those that do not end in time."""
    for worker in workers:
        worker.close()
    deadline = Deadline(END_SECONDS)
    for worker in workers:
        with contextlib.suppress(Exception):
            worker.wait(deadline.remaining)
            worker.kill()  # else one that hangs would delay our own exit
            worker.wait(END_SECONDS)
