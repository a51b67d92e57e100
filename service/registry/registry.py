"""The models in service: loaded, held to their golden answers, replaced, dropped."""

import contextlib
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from service import errors, os_resources
from service.pool.pool import Pool
from service.registry import folder
from service.registry.catalog import TASKS, Catalog, Model
from service.registry.folder import VersionFolder
from service.registry.load_errors import LoadErrors
from service.registry.loader import Loader
from service.registry.versions import ModelVersions
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Registry(Catalog):
    """Loads in the background, at the start and whenever the folder of bundles
    changes; knows at any time what is ready, and why not."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        pool: Pool,
        *,
        on_failure: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            on_failure: called when a bundle is broken and `skip_broken` is off.
        """
        super().__init__(settings)
        self.failed = self._draining = False
        self._metrics, self._pool, self._on_failure = metrics, pool, on_failure
        self._loader = Loader(settings, metrics, pool)
        self._faults = LoadErrors()
        self._stocks: dict[str, ModelVersions] = {}  # by the shelf's name
        self._owners: dict[str, str] = {}  # by a model's name: its shelf's
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ended = False  # nothing is done any more that is asked for
        self._stop = threading.Event()
        # A daemon: a disk that does not answer must not hold up the process's end, as
        # it would with an executor, whose threads the interpreter waits for.
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Load every bundle in a thread of its own."""
        self._thread.start()

    def drain(self) -> None:
        """It is about to be stopped: whoever can is to ask another."""
        self._draining = True

    def close(self) -> None:
        """Stop loading, and end the workers."""
        self._draining = True
        self._stop.set()
        self._end()
        self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(self._settings.grace_seconds)

    def load(self, name: str) -> "Future[None]":
        """Look for new versions of a name now, also if it was unloaded.

        Raises (also the future):
            UnknownModel, NotReady: there is none, or it can't be loaded.
            Stopping: nothing is loaded any more.
        """
        return self._ask(partial(self._load_name, name))

    def unload(self, name: str) -> "Future[None]":
        """Serve a name no more, until it is asked for; what is under way is answered.

        Raises (also the future):
            UnknownModel: there is none.
            Stopping: as `load`.
        """
        return self._ask(partial(self._unload_name, name))

    @property
    def ready(self) -> bool:
        return self.complete and not (self.failed or self._draining)

    def not_ready_reasons(self) -> list[str]:
        """Why not everything is ready; empty when it is."""
        if self._draining:
            return ["stopping"]
        waiting = [] if self.complete else ["loading the bundles"]
        return [*waiting, *(self.broken.values() if self.failed else ())]

    @property
    def alive(self) -> bool:
        """Requests can be answered, or will be soon."""
        return self._stop.is_set() or self._pool.alive

    def _ask(self, work: Callable[[], None]) -> "Future[None]":
        """Have it done in the thread, unless the future is cancelled before."""
        future: Future[None] = Future()
        self._asked.put(partial(self._answer, future, work))
        if self._ended and future.cancel():  # perhaps the thread has ended before
            raise errors.Stopping("the service is stopping")
        return future

    def _answer(self, future: "Future[None]", work: Callable[[], None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._ended:
                raise errors.Stopping("the service is stopping")
            work()
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # it would end the event loop
            future.set_exception(errors.InternalError(f"a load ended by {error!r}"))
            raise
        else:
            future.set_result(None)

    def _end(self) -> None:
        self._ended = True
        self._asked.put(lambda: None)  # wakes the thread

    def _run(self) -> None:
        """Load every bundle; then do what is asked, one after another, and look at the
        folder now and then. Nothing but `_end` ends that."""
        _survive(self._begin)
        os_resources.lower_thread_priority()  # from here on, requests are answered meanwhile
        seconds = self._settings.reload_seconds
        due = time.monotonic() + seconds
        while not (self._ended and self._asked.empty()):
            left = max(0.0, due - time.monotonic()) if seconds else None
            try:
                work = self._asked.get(timeout=left)
            except queue.Empty:
                work, due = self._look, time.monotonic() + seconds
            _survive(work)

    def _begin(self) -> None:
        try:
            self._load_all()
        except BaseException as error:  # a fault of ours must not look like slowness
            log.exception("the bundles could not be loaded")
            self._faults.add("registry", f"{type(error).__name__}: {error}")
            self._fail()
        if self.failed:
            self._end()

    def _load_all(self) -> None:
        begun = time.perf_counter()
        root = self._settings.bundles
        shelves: list[VersionFolder] = []
        try:
            shelves = folder.scan(root)
            if not shelves:
                self._faults.add(str(root), f"{root}: no bundle found")
        except OSError as error:
            self._faults.add(str(root), f"{root}: {error}")
        for shelf in shelves:
            if self._stop.is_set():
                return
            self._update(shelf, at_once=True)
        if self._stop.is_set():
            return
        self._check_defaults()
        self._retell()
        # Nothing to serve is a failure, whatever the setting says.
        if self.broken and not (self._settings.skip_broken and self.models):
            self._fail()
            return
        self.complete = True
        self._count_features()  # the defaults are known now
        self._metrics.ready.set(1)
        # What is there stays: no need to look through it for garbage ever again.
        gc.collect()
        gc.freeze()
        seconds = round(time.perf_counter() - begun, 2)
        log.info("ready", extra={"models": list(self.models), "seconds": seconds})

    def _fail(self) -> None:
        self.broken = self._faults.told(self._served())
        self.failed = self.complete = True
        self._count_features()
        self._on_failure()

    def _look(self) -> None:
        """Take up what has changed on disk. A name that is gone is still served."""
        shelves = folder.scan(self._settings.bundles)
        for gone in self._stocks.keys() - {shelf.name for shelf in shelves}:
            if not self._stocks[gone].models:
                self._faults.forget(gone)
        for shelf in shelves:
            if not self._stop.is_set():
                self._update(shelf)
        self._retell()

    def _load_name(self, name: str) -> None:
        # A folder may be called otherwise than its model is.
        owner = self._owners.get(name, "" if name in self._owners.values() else name)
        for shelf in folder.scan(self._settings.bundles):
            if shelf.name == owner:
                self._stock(shelf).unloaded = False
                self.unloaded -= {name}
                self._update(shelf, at_once=True)
                self._retell()
                if self._faults.of(owner):
                    raise errors.NotReady("; ".join(self._faults.of(owner)))
                return
        raise errors.UnknownModel("no bundle of that name")

    def _unload_name(self, name: str) -> None:
        owner = self._owners.get(name, "")
        stock = self._stocks.get(owner)
        if stock is None or stock.unloaded:
            raise errors.UnknownModel("no model of that name")
        self.unloaded |= {name}
        self._faults.forget(owner)
        self._drop(stock.clear())
        self._retell()

    def _retell(self) -> None:
        self.broken = self._faults.told(self._served())

    def _served(self) -> set[str]:
        return {name for name, stock in self._stocks.items() if stock.models}

    def _stock(self, shelf: VersionFolder) -> ModelVersions:
        if shelf.name not in self._stocks:
            self._stocks[shelf.name] = ModelVersions(
                partial(self._load, shelf),
                partial(self._tell, shelf),
                self._pool.workers,
                self._settings.keys,
            )
        return self._stocks[shelf.name]

    def _tell(self, shelf: VersionFolder, path: Path, reason: str | None) -> None:
        if not self._stop.is_set():  # else the stop is the reason
            self._faults.tell(shelf.name, path, reason)

    def _update(self, shelf: VersionFolder, *, at_once: bool = False) -> None:
        stock = self._stock(shelf)
        if stock.unloaded:
            return
        keep, pinned = self._settings.keep_versions, self._pinned(shelf.name)
        gone = stock.update(shelf, keep, pinned, at_once=at_once)
        if gone is not None:
            self._drop(gone)
        if not self.complete:
            self._retell()

    def _pinned(self, name: str) -> set[int]:
        """The versions of a name that the settings mean."""
        meant = (getattr(self._settings, f"default_{task}") for task in TASKS)
        split = (reference.partition("@") for reference in meant)
        return {int(v) for of, _, v in split if of == name and v.isdecimal()}

    def _drop(self, gone: list[Model]) -> None:
        """Have what is loaded meant, and these no more."""
        held = [one for one in self._stocks.values() if one.models]
        names = [next(iter(one.models.values())).metadata.name for one in held]
        self._publish(
            {name: one.models for name, one in zip(names, held, strict=True)},
            {name: one.labels for name, one in zip(names, held, strict=True)},
        )
        self._retell()  # now: what is meant is not broken
        for model in gone:
            self._loader.retire(model)

    def _load(self, shelf: VersionFolder, found: Bundle) -> Model:
        if self._stop.is_set():
            raise BundleError("the service stops")
        name = found.metadata.name
        if shelf.folder is not None and shelf.name != name:
            # An older version, signed too, must not take a name by its folder's place.
            own = shelf.folder.parent / name
            if bundle.versions(own):
                raise BundleError(f"{found.folder}: holds {name}, and so does {own}")
        owner = self._owners.setdefault(name, shelf.name)
        if owner != shelf.name and self._stocks[owner].models:
            raise BundleError(f"{found.folder}: another bundle is named {name} too")
        self._owners[name] = shelf.name
        return self._loader.load(found, background=self.complete)

    def _check_defaults(self) -> None:
        for task in TASKS:
            name = getattr(self._settings, f"default_{task}")
            if name and self.default(task) is None:
                told = f"UNROLLED_DEFAULT_{task.upper()}: no model {name} for {task}"
                self._faults.add(f"default_{task}", told)


def _survive(work: Callable[[], None]) -> None:
    """Do it; whatever it raises is logged."""
    try:
        work()
    except OSError as error:
        log.error("the bundles can't be read: %s", error)
    except BaseException:  # whatever it is: what is served goes on
        with contextlib.suppress(BaseException):
            log.exception("the bundles could not be looked through")
