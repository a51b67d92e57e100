"""A worker: one core, one copy of each model, no other thread to wait for.

Engines run here and HTTP elsewhere, because threads of one process would take turns
in its interpreter.
A network that takes its process down takes only this one.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from model.bundle.bundle import Bundle, BundleError
from service import os_resources
from service.settings import Settings
from service.telemetry import logs
from service.worker import cost, engine, loading
from service.worker.background import BackgroundEngine
from service.worker.engine import Engine, Engines
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

# Who reads requests goes first where all cores are at work: it refuses what is too
# much, and answers probes.
NICE = 10
FIGURES_SECONDS = 0.02  # that figures about ticks may wait


class Worker:
    """Computes jobs that come over one socket; loads models that another asks for,
    beside its work."""

    def __init__(
        self,
        jobs: socket.socket,
        control: socket.socket,
        settings: Settings,
        engines: Engines = engine.ENGINES,
        allow: loading.Allow = lambda more: None,
    ):
        """
        Args:
            allow: limits the memory that it takes more.
        """
        self._jobs = Channel(jobs, ToWorker)
        self._control = Channel(control, ToWorker)
        self._settings, self._engines, self._allow = settings, engines, allow
        # Replaced, never changed: one thread looks through it, another adds to it.
        self._schedulers: dict[int, Scheduler] = {}
        self._changing = threading.Lock()
        self._idle = False
        self._leaving: set[int] = set()

    def run(self) -> None:
        """Work until the other side hangs up."""
        threading.Thread(target=self._load_all, name="loader", daemon=True).start()
        told: list[FromWorker] = []
        sent = time.monotonic()
        with contextlib.suppress(EOFError, OSError):
            while True:
                idle = not any(s.busy for s in self._schedulers.values())
                self._idle = idle
                for message in self._jobs.receive(wait=idle):
                    told += self._take(message)
                self._idle = False
                told += self._tick()
                if self._leaving:
                    self._unload()
                # Figures alone can wait: the other side has more to do.
                news = any(not isinstance(message, BatchReport) for message in told)
                if told and (news or time.monotonic() > sent + FIGURES_SECONDS):
                    self._jobs.send(told)
                    told, sent = [], time.monotonic()

    def _tick(self) -> list[FromWorker]:
        """An engine call of each model that has something to do; or of the job that
        has to be alone, announced before."""
        busy = [one for one in self._schedulers.values() if one.busy]
        for scheduler in busy:
            if scheduler.trying is not None:
                self._jobs.send([IsolatedJobStarted(scheduler.trying)])
                return scheduler.run_batch()
        return [message for scheduler in busy for message in scheduler.run_batch()]

    def _take(self, message: ToWorker) -> list[FromWorker]:
        if isinstance(message, Job):
            scheduler = self._schedulers.get(message.model)
            if scheduler is None:
                gone = BatchReport(message.model, 0, 0, 0, 0.0, message.steps)
                reason = "this worker came after the model was replaced"
                return [gone, JobFailure(message.number, reason)]
            numbers = np.frombuffer(message.frames, np.float32)
            frames = numbers.reshape(message.steps, -1)
            state = np.frombuffer(message.state, np.float32) if message.state else None
            scheduler.add(
                message.number,
                frames,
                state,
                until=message.until,
                keep=message.keep,
                alone=message.alone,
                caller=message.caller,
            )
        elif isinstance(message, CancelJob):
            for scheduler in self._schedulers.values():
                scheduler.cancel(message.number)
        elif isinstance(message, UnloadModel):
            self._leaving.add(message.model)
        return []

    def _unload(self) -> None:
        """Drop the models that nobody asks for, once their last work is done."""
        done = {
            number
            for number in self._leaving
            if number not in self._schedulers or not self._schedulers[number].busy
        }
        self._leaving -= done
        with self._changing:
            kept = self._schedulers.items()
            self._schedulers = {n: one for n, one in kept if n not in done}

    def _gentle(
        self, make: Callable[[Bundle, Settings], Engine], *given: Any
    ) -> BackgroundEngine:
        return BackgroundEngine(make(*given), lambda: self._idle)

    def _load_all(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                for message in self._control.receive():
                    self._control.send([self._load(message)])

    def _load(self, wanted: LoadModel) -> LoadResult:
        if wanted.background:
            os_resources.lower_thread_priority()
        engines = self._engines
        if wanted.background:
            engines = {n: partial(self._gentle, make) for n, make in engines.items()}
        try:
            found, loaded = loading.load(wanted, self._settings, engines, self._allow)
            with loading.refusing(wanted.folder, self._settings):
                price = cost.measure(loaded.engine, found.metadata)
        except BundleError as error:
            return LoadResult(wanted.model, error=str(error))
        made = loaded.engine
        scheduler = Scheduler(
            made.inner if isinstance(made, BackgroundEngine) else made,
            found.metadata,
            self._settings,
            model=wanted.model,
            cost=price,
        )
        with self._changing:
            self._schedulers = {**self._schedulers, wanted.model: scheduler}
        told = (loaded.engine.name, loaded.precision, loaded.reason)
        return LoadResult(wanted.model, *told)


def main(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    """The process. It ends when the one that started it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # told to all; that one decides
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        os.nice(NICE)
    os_resources.configure_allocator()
    parsed = Settings.model_validate_json(settings)
    logs.setup(parsed.log_format, parsed.log_level)
    Worker(jobs, control, parsed, allow=os_resources.limit_memory).run()
