"""A worker process: it runs the engine calls of all models on one core.

Engines run in workers and HTTP in the serving process, because threads of one process
would compete for its interpreter. A network that crashes its process crashes only
this worker.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time

import numpy as np

from model.bundle.bundle import Bundle, BundleError
from service import os_resources
from service.settings import Settings
from service.telemetry import logs
from service.worker import cost, loading
from service.worker.background import BackgroundEngine
from service.worker.engine import ENGINES, EngineFactory, Engines
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    Channel,
    FromWorker,
    IsolatedJobStarted,
    Job,
    JobFailure,
    LoadModel,
    LoadResult,
    ToWorker,
    UnloadModel,
)
from service.worker.scheduler import Scheduler

log = logging.getLogger(__name__)

# The serving process goes first when all cores are busy: it sheds load and answers
# health probes.
NICE = 10
REPORT_SECONDS = 0.02  # batch reports without results may wait for so long


class Worker:
    """Computes the jobs that come over one socket. A thread loads the models that the
    other socket requests."""

    def __init__(
        self,
        jobs: socket.socket,
        control: socket.socket,
        settings: Settings,
        engines: Engines = ENGINES,
        limit_memory: loading.LimitMemory = lambda extra_bytes: None,
    ):
        self._jobs = Channel(jobs, ToWorker)
        self._control = Channel(control, ToWorker)
        self._settings, self._engines = settings, engines
        self._limit_memory = limit_memory
        # By model number. The dict is replaced, never changed: one thread iterates
        # over it while another adds to it.
        self._schedulers: dict[int, Scheduler] = {}
        self._replacing = threading.Lock()
        self._idle = False
        self._unloading: set[int] = set()

    def run(self) -> None:
        """Work until the serving process closes the socket."""
        threading.Thread(target=self._serve_control, name="loader", daemon=True).start()
        messages: list[FromWorker] = []
        sent = time.monotonic()
        with contextlib.suppress(EOFError, OSError):
            while True:
                idle = not any(s.busy for s in self._schedulers.values())
                self._idle = idle
                for message in self._jobs.receive(wait=idle):
                    messages += self._handle(message)
                self._idle = False
                messages += self._run_batches()
                if self._unloading:
                    self._unload()
                # Reports alone may wait: the serving process has more to do.
                urgent = any(not isinstance(m, BatchReport) for m in messages)
                if messages and (urgent or time.monotonic() > sent + REPORT_SECONDS):
                    self._jobs.send(messages)
                    messages, sent = [], time.monotonic()

    def _run_batches(self) -> list[FromWorker]:
        """Make an engine call for each model that has jobs, or a single one for an
        isolated job, which is announced first."""
        busy = [s for s in self._schedulers.values() if s.busy]
        for scheduler in busy:
            if scheduler.next_isolated is not None:
                self._jobs.send([IsolatedJobStarted(scheduler.next_isolated)])
                return scheduler.run_batch()
        return [message for s in busy for message in s.run_batch()]

    def _handle(self, message: ToWorker) -> list[FromWorker]:
        if isinstance(message, Job):
            scheduler = self._schedulers.get(message.model)
            if scheduler is None:
                report = BatchReport(message.model, 0, 0, 0, 0.0, message.steps)
                reason = "this worker started after the model was replaced"
                return [report, JobFailure(message.number, reason)]
            values = np.frombuffer(message.frames, np.float32)
            state = np.frombuffer(message.state, np.float32) if message.state else None
            scheduler.add(
                message.number,
                values.reshape(message.steps, -1),
                state,
                deadline=message.deadline,
                return_state=message.return_state,
                isolated=message.isolated,
                caller=message.caller,
            )
        elif isinstance(message, CancelJob):
            for scheduler in self._schedulers.values():
                scheduler.cancel(message.number)
        elif isinstance(message, UnloadModel):
            self._unloading.add(message.model)
        return []

    def _unload(self) -> None:
        """Drop the models to be unloaded whose last job is done."""
        done = {
            model
            for model in self._unloading
            if model not in self._schedulers or not self._schedulers[model].busy
        }
        self._unloading -= done
        with self._replacing:
            items = self._schedulers.items()
            self._schedulers = {model: s for model, s in items if model not in done}

    def _serve_control(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                for message in self._control.receive():
                    self._control.send([self._load(message)])

    def _load(self, request: LoadModel) -> LoadResult:
        engines = self._engines
        if request.background:
            os_resources.lower_thread_priority()
            engines = {name: self._background(make) for name, make in engines.items()}
        try:
            bundle, loaded = loading.load(
                request, self._settings, engines, self._limit_memory
            )
            with loading.bundle_errors(request.folder, self._settings):
                call_cost = cost.measure(loaded.engine, bundle.metadata)
        except BundleError as error:
            return LoadResult(request.model, error=str(error))
        engine = loaded.engine
        scheduler = Scheduler(
            engine.inner if isinstance(engine, BackgroundEngine) else engine,
            bundle.metadata,
            self._settings,
            model=request.model,
            cost=call_cost,
        )
        with self._replacing:
            self._schedulers = {**self._schedulers, request.model: scheduler}
        return LoadResult(request.model, engine.name, loaded.precision, loaded.reason)

    def _background(self, factory: EngineFactory) -> EngineFactory:
        def make(bundle: Bundle, settings: Settings) -> BackgroundEngine:
            return BackgroundEngine(factory(bundle, settings), lambda: self._idle)

        return make


def main(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    """Run a worker process. It ends when the serving process does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The terminal sends them to all processes; the serving process decides.
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        os.nice(NICE)
    os_resources.configure_allocator()
    parsed = Settings.model_validate_json(settings)
    logs.setup(parsed.log_format, parsed.log_level)
    Worker(jobs, control, parsed, limit_memory=os_resources.limit_memory).run()
