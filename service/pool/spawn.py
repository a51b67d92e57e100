"""Workers, started: as processes, or in a test as threads."""

import contextlib
import importlib.util
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from typing import TYPE_CHECKING

from model.bundle.bundle import BundleError
from service.settings import SECRETS, Settings
from service.worker.protocol import Channel, LoadModel, LoadResult

if TYPE_CHECKING:
    from service.worker.engine import (
        Engines,  # what a worker needs is not imported here
    )

_context = multiprocessing.get_context("forkserver")


PRELOADED = (
    "service.worker.main",
    "service.worker.trial",
    "service.worker.onnx_engine",
    "service.codecs.process",
)
EDGE_SECONDS = 0.01  # past a deadline, so that it has passed for sure


class WorkerDied(BundleError):
    """A worker died while it loaded a bundle; perhaps not of it."""


class LoadTimeout(BundleError):
    """A worker had not loaded a bundle by the deadline, and was killed."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """So many seconds from now on."""

    seconds: float
    _begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until then; 0 when it has passed."""
        return max(0.0, self._begun + self.seconds - time.monotonic())


@dataclass(frozen=True, slots=True)
class WorkerHandle:
    """The two sockets to a worker, how to wait for its end, and how to force it."""

    jobs: socket.socket
    control: socket.socket
    wait: Callable[[float], object]
    kill: Callable[[], object] = lambda: None
    models: set[int] = field(default_factory=set, compare=False)  # that it has loaded

    def ask(self, wanted: LoadModel, deadline: Deadline) -> None:
        """Have it load a bundle; `told` says what became of it."""
        with contextlib.suppress(OSError):  # told then
            self._allow(deadline)
            Channel(self.control, LoadResult).send([wanted])

    def told(self, wanted: LoadModel, deadline: Deadline) -> LoadResult:
        """What became of it.

        Raises:
            WorkerDied: it died.
            LoadTimeout: it did not answer by the deadline.
            BundleError: it can't load it; with the reason.
        """
        try:
            self._allow(deadline)
            (loaded,) = Channel(self.control, LoadResult).receive()
        except (EOFError, OSError):
            if deadline.left:
                reason = "the process that loaded it died"
                raise WorkerDied(f"{wanted.folder}: {reason}") from None
            self.kill()
            reason = f"did not load within {deadline.seconds:g} s"
            raise LoadTimeout(f"{wanted.folder}: {reason}") from None
        if loaded.error:
            raise BundleError(loaded.error)
        self.models.add(wanted.model)
        told: LoadResult = loaded
        return told

    def _allow(self, deadline: Deadline) -> None:
        self.control.settimeout(deadline.left + EDGE_SECONDS)

    def hang_up(self) -> None:
        """Have it end, and whoever reads from it."""
        for sock in (self.control, self.jobs):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


StartWorker = Callable[[Settings], WorkerHandle]


def prepare() -> None:
    """Begin to import what workers need, in the process that they are forked from:
    each then starts in no time and shares that memory with the others."""
    for name in PRELOADED:
        # One that is not there would be passed over, and each start be slow.
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name)
    _context.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def _work(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    from service.worker import main  # there already, where this is forked from

    main.main(jobs, control, settings)


def _try(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    from service.worker import trial

    trial.main(jobs, control, settings)


def process(settings: Settings) -> WorkerHandle:
    """A worker in a process of its own."""
    return _process(settings, _work)


def trial(settings: Settings) -> WorkerHandle:
    """A process that tries a bundle before any worker has it; see `trial`."""
    return _process(settings, _try)


def _process(
    settings: Settings, target: Callable[[socket.socket, socket.socket, str], None]
) -> WorkerHandle:
    jobs, control = socket.socketpair(), socket.socketpair()
    told = settings.model_dump_json(exclude=set(SECRETS))
    with jobs[1], control[1]:
        made = _context.Process(
            target=target,
            args=(jobs[1], control[1], told),
            name=target.__name__.strip("_"),
            daemon=True,
        )
        made.start()
    return WorkerHandle(jobs[0], control[0], made.join, made.kill)


def thread(engines: "Engines") -> StartWorker:
    """Workers in threads of this process, over engines of the caller's."""

    def launch(settings: Settings) -> WorkerHandle:
        from service.worker import main

        jobs, control = socket.socketpair(), socket.socketpair()
        working = main.Worker(jobs[1], control[1], settings, engines)

        def run() -> None:
            with jobs[1], control[1]:
                working.run()

        made = threading.Thread(target=run, name="worker", daemon=True)
        made.start()
        return WorkerHandle(jobs[0], control[0], made.join)

    return launch
