"""Starting workers: as processes, or as threads in tests."""

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

if TYPE_CHECKING:  # the serving process does not import what only workers need
    from service.worker.engine import Engines

_context = multiprocessing.get_context("forkserver")

# The modules that worker and codec processes are forked with.
PRELOADED = (
    "service.worker.main",
    "service.worker.onnx_engine",
    "service.codecs.process",
)
EXTRA_SECONDS = 0.01  # of a socket's timeout, so that the deadline passes before it


class WorkerDied(BundleError):
    """A worker died while it loaded a bundle; the bundle may not be the cause."""


class LoadTimeout(BundleError):
    """A worker had not loaded a bundle by the deadline, and was killed."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time, so many seconds from now."""

    seconds: float
    _created: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float:
        """Seconds until then; 0 when it has passed."""
        return max(0.0, self._created + self.seconds - time.monotonic())


@dataclass(frozen=True, slots=True)
class WorkerHandle:
    """The two sockets of a worker, and how to wait for its end or force it."""

    jobs: socket.socket
    control: socket.socket
    wait: Callable[[float], object]
    kill: Callable[[], object] = lambda: None
    models: set[int] = field(default_factory=set, compare=False)  # loaded

    def request_load(self, request: LoadModel, deadline: Deadline) -> None:
        """Ask the worker to load a bundle; `wait_loaded` returns the result."""
        with contextlib.suppress(OSError):  # `wait_loaded` will raise
            self._set_timeout(deadline)
            Channel(self.control, LoadResult).send([request])

    def wait_loaded(self, request: LoadModel, deadline: Deadline) -> LoadResult:
        """Return the result of `request_load`.

        Raises:
            WorkerDied: the worker died.
            LoadTimeout: there was no result by the deadline.
            BundleError: the bundle cannot be loaded; with the reason.
        """
        try:
            self._set_timeout(deadline)
            (result,) = Channel(self.control, LoadResult).receive()
        except (EOFError, OSError):
            if deadline.remaining:
                reason = "the process that loaded it died"
                raise WorkerDied(f"{request.folder}: {reason}") from None
            self.kill()
            reason = f"did not load within {deadline.seconds:g} s"
            raise LoadTimeout(f"{request.folder}: {reason}") from None
        assert isinstance(result, LoadResult)
        if result.error:
            raise BundleError(result.error)
        self.models.add(request.model)
        return result

    def _set_timeout(self, deadline: Deadline) -> None:
        self.control.settimeout(deadline.remaining + EXTRA_SECONDS)

    def close(self) -> None:
        """Close the sockets, which ends the worker and everything that reads them."""
        for sock in (self.control, self.jobs):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


StartWorker = Callable[[Settings], WorkerHandle]


def prepare() -> None:
    """Start the fork server, which begins to import the modules that workers need.
    Workers then start at once and share the memory of these modules."""
    for name in PRELOADED:
        # The fork server ignores a missing module; then each worker would start slowly.
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name)
    _context.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def _worker(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    from service.worker import main  # imported already by the fork server

    main.main(jobs, control, settings)


def _trial(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    from service.worker import loading

    loading.trial_main(jobs, control, settings)


def process(settings: Settings) -> WorkerHandle:
    """Start a worker process."""
    return _start(settings, _worker)


def trial(settings: Settings) -> WorkerHandle:
    """Start a process that tries a bundle; see `worker.loading`."""
    return _start(settings, _trial)


def _start(
    settings: Settings, target: Callable[[socket.socket, socket.socket, str], None]
) -> WorkerHandle:
    jobs, control = socket.socketpair(), socket.socketpair()
    without_secrets = settings.model_dump_json(exclude=set(SECRETS))
    with jobs[1], control[1]:
        started = _context.Process(
            target=target,
            args=(jobs[1], control[1], without_secrets),
            name=target.__name__.strip("_"),
            daemon=True,
        )
        started.start()
    return WorkerHandle(jobs[0], control[0], started.join, started.kill)


def thread(engines: "Engines") -> StartWorker:
    """Return a function that starts workers as threads of this process, which choose
    from these engines."""

    def start(settings: Settings) -> WorkerHandle:
        from service.worker.main import Worker

        jobs, control = socket.socketpair(), socket.socketpair()
        worker = Worker(jobs[1], control[1], settings, engines)

        def run() -> None:
            with jobs[1], control[1]:
                worker.run()

        started = threading.Thread(target=run, name="worker", daemon=True)
        started.start()
        return WorkerHandle(jobs[0], control[0], started.join)

    return start
