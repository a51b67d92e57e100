"""The worker processes: started, told what to load, ended."""

import contextlib
import logging
import threading
import time

from model.bundle import BundleError

from . import launch
from .engine import available_cores
from .launch import Launch, Launched
from .messages import Load, Loaded
from .settings import Settings

log = logging.getLogger(__name__)

END_SECONDS = 5.0  # for a worker to end
WAIT_SECONDS = 0.1  # between looks for a worker


class WorkerDied(BundleError):
    """A worker died while it loaded a bundle; perhaps not of it."""


class Workers:
    """One for each core; all load every model. Nothing here is for the event loop."""

    def __init__(self, settings: Settings, start: Launch = launch.process):
        self.all: list[Launched] = []
        self.closed = False
        self._settings, self._start = settings, start
        self._wanted: dict[int, Load] = {}  # by model; what a new worker loads
        self._loading = threading.Lock()  # a new worker must miss no model

    def start(self) -> None:
        """Start the processes; they load what they need while others go on."""
        for _ in range(self._settings.workers or available_cores()):
            self.all.append(self._start(self._settings))

    def load(self, wanted: Load) -> Loaded:
        """Have all load a bundle; where that is to be gently one after another, so
        that the others have the machine to answer.

        Raises:
            WorkerDied: one did.
            BundleError: one can't load it; with the reason.
        """
        while not self.closed:
            with self._loading:
                if self.all:
                    workers = list(self.all)
                    turns = [[one] for one in workers] if wanted.gently else [workers]
                    told = [self._load(turn, wanted) for turn in turns]
                    self._wanted[wanted.model] = wanted
                    return told[0]
            time.sleep(WAIT_SECONDS)  # all have died: others will come
        raise BundleError("the service stops")

    def wants(self, model: int) -> bool:
        """Whether new ones load a model."""
        return model in self._wanted

    def forget(self, model: int) -> None:
        """New ones need not load a model."""
        self._wanted.pop(model, None)

    def start_loaded(self) -> Launched:
        """Another one, with all models that can be loaded now.

        Raises:
            WorkerDied, BundleError: not now.
        """
        with self._loading:
            launched = self._start(self._settings)
            try:
                for wanted in list(self._wanted.values()):
                    self._reload(launched, wanted)
                if self.closed:
                    raise BundleError("the service stops")
            except BundleError:
                launched.hang_up()
                launched.wait(END_SECONDS)  # else nobody would
                raise
            self.all.append(launched)
        return launched

    def drop(self, worker: Launched) -> None:
        """Count no more on one."""
        with contextlib.suppress(ValueError):  # dropped already
            self.all.remove(worker)
        worker.hang_up()

    def close(self) -> None:
        """End them."""
        self.closed = True
        workers = list(self.all)  # one that is seen to go leaves it meanwhile
        for launched in workers:
            launched.hang_up()
        until = time.monotonic() + END_SECONDS
        for launched in workers:
            with contextlib.suppress(Exception):
                launched.wait(max(0, until - time.monotonic()))
                launched.kill()  # one that hangs would be waited for at our own end
                launched.wait(END_SECONDS)

    def _load(self, workers: list[Launched], wanted: Load) -> Loaded:
        for worker in workers:
            worker.ask(wanted)
        answers = [worker.told(wanted) for worker in workers]
        for worker, told in zip(workers, answers, strict=True):
            if told.died:
                self.drop(worker)  # the next bundle must not be blamed for it
        for told in answers:
            if told.error:
                raise (WorkerDied if told.died else BundleError)(told.error)
        return answers[0]

    def _reload(self, launched: Launched, wanted: Load) -> None:
        try:
            self._load([launched], wanted)
        except WorkerDied:
            raise
        except BundleError as error:  # the others have it still
            log.error("a new worker goes without a model: %s", error)
