"""The registry: loads bundles, checks them against their golden answers, and replaces
or drops them as the folder changes."""

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

from model.bundle import bundle as bundles
from model.bundle import folders as bundle_folders
from model.bundle.bundle import Bundle, BundleError
from model.bundle.folders import VersionFolder
from service import errors, os_resources
from service.pool.pool import Pool
from service.registry.catalog import TASKS, Catalog, Model
from service.registry.load_errors import LoadErrors
from service.registry.loader import Loader
from service.registry.versions import ModelVersions
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Registry(Catalog):
    """Loads bundles in a thread: at the start, when the folder changes, and on request.

    It knows at any time what is ready, and why something isn't.
    """

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
        self._load_errors = LoadErrors()
        self._versions: dict[str, ModelVersions] = {}  # by the folder's name
        self._folder_of: dict[str, str] = {}  # the folder's name by the model's
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._finishing = False  # no further job is done
        self._stop = threading.Event()
        # A daemon, since a disk that does not answer must not block the exit: the
        # interpreter would wait for the thread of an executor.
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Start loading every bundle, in the loader thread."""
        self._thread.start()

    def drain(self) -> None:
        """Report not ready, because the service is about to stop."""
        self._draining = True

    def close(self) -> None:
        """Stop loading, and end the workers."""
        self._draining = True
        self._stop.set()
        self._finish()
        self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(self._settings.grace_seconds)

    def load(self, name: str) -> "Future[None]":
        """Look for new versions of a name now, even if it was unloaded.

        Raises (also the future):
            UnknownModel, NotReady: there is no such bundle, or it can't be loaded.
            Stopping: the service is stopping.
        """
        return self._submit(partial(self._load_name, name))

    def unload(self, name: str) -> "Future[None]":
        """Stop serving a name until `load`; requests under way are answered.

        Raises (also the future):
            UnknownModel: there is no such model.
            Stopping: see `load`.
        """
        return self._submit(partial(self._unload_name, name))

    @property
    def ready(self) -> bool:
        return self.complete and not (self.failed or self._draining)

    def not_ready_reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is."""
        if self._draining:
            return ["stopping"]
        loading = [] if self.complete else ["loading the bundles"]
        return [*loading, *(self.broken.values() if self.failed else ())]

    @property
    def alive(self) -> bool:
        """True if requests can be answered now or soon."""
        return self._stop.is_set() or self._pool.alive

    # --- the loader thread and its jobs ---

    def _submit(self, job: Callable[[], None]) -> "Future[None]":
        """Do a job in the loader thread, unless its future is cancelled before."""
        future: Future[None] = Future()
        self._jobs.put(partial(self._complete, future, job))
        if self._finishing and future.cancel():  # the thread may have ended already
            raise errors.Stopping("the service is stopping")
        return future

    def _complete(self, future: "Future[None]", job: Callable[[], None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._finishing:
                raise errors.Stopping("the service is stopping")
            job()
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # it would end the event loop
            message = f"loading was interrupted by {error!r}"
            future.set_exception(errors.InternalError(message))
            raise
        else:
            future.set_result(None)

    def _finish(self) -> None:
        self._finishing = True
        self._jobs.put(lambda: None)  # wakes the thread

    def _run(self) -> None:
        """Load every bundle; then do jobs one by one, and check the folder regularly."""
        _log_errors(self._load_at_start)
        os_resources.lower_thread_priority()  # from now on requests are being answered
        seconds = self._settings.reload_seconds
        due = time.monotonic() + seconds
        while not (self._finishing and self._jobs.empty()):
            timeout = max(0.0, due - time.monotonic()) if seconds else None
            try:
                job = self._jobs.get(timeout=timeout)
            except queue.Empty:
                job, due = self._check_folder, time.monotonic() + seconds
            _log_errors(job)

    def _load_at_start(self) -> None:
        try:
            self._load_all()
        except BaseException as error:  # a bug must not look like slow loading
            log.exception("the bundles could not be loaded")
            self._load_errors.add("registry", f"{type(error).__name__}: {error}")
            self._fail()
        if self.failed:
            self._finish()

    def _load_all(self) -> None:
        begun = time.perf_counter()
        roots = ", ".join(map(str, self._settings.folders))
        folders: list[VersionFolder] = []
        try:
            folders = self._scan()
            if not folders:
                self._load_errors.add(roots, f"{roots}: no bundle found")
        except OSError as error:
            self._load_errors.add(roots, f"{roots}: {error}")
        for folder in folders:
            if self._stop.is_set():
                return
            self._update(folder, force=True)
        if self._stop.is_set():
            return
        self._check_defaults()
        self._update_broken()
        # Without any model the service fails, even with `skip_broken`.
        if self.broken and not (self._settings.skip_broken and self.models):
            self._fail()
            return
        seconds = round(time.perf_counter() - begun, 2)
        log.info("ready", extra={"models": list(self.models), "seconds": seconds})
        self.complete = True
        self._update_tasks()  # the default models are known now
        self._metrics.ready.set(1)
        # What exists now will stay: the garbage collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _fail(self) -> None:
        self._update_broken()
        self.failed = self.complete = True
        self._update_tasks()
        self._on_failure()

    def _check_folder(self) -> None:
        """Load what has changed on disk. A name that is gone from it is still served."""
        folders = self._scan()
        for gone in self._versions.keys() - {folder.name for folder in folders}:
            if not self._versions[gone].models:
                self._load_errors.clear(gone)
        for folder in folders:
            if not self._stop.is_set():
                self._update(folder)
        self._update_broken()

    def _load_name(self, name: str) -> None:
        # A folder may have another name than its model; each is loaded by one name.
        owner = self._folder_of.get(name)
        if owner is None and name not in self._folder_of.values():
            owner = name
        for folder in self._scan():
            if folder.name == owner:
                self._versions_of(folder).unloaded = False
                self.unloaded -= {name}
                self._update(folder, force=True)
                self._update_broken()
                if reasons := self._load_errors.of_folder(owner):
                    raise errors.NotReady("; ".join(reasons))
                return
        raise errors.UnknownModel("no such bundle")

    def _unload_name(self, name: str) -> None:
        owner = self._folder_of.get(name, "")
        versions = self._versions.get(owner)
        if versions is None or versions.unloaded:
            raise errors.UnknownModel("no such model")
        self.unloaded |= {name}
        self._load_errors.clear(owner)
        self._serve_without(versions.clear())
        self._update_broken()

    def _scan(self) -> list[VersionFolder]:
        return bundle_folders.scan(*self._settings.folders)

    # --- versions ---

    def _versions_of(self, folder: VersionFolder) -> ModelVersions:
        if folder.name not in self._versions:
            self._versions[folder.name] = ModelVersions(
                partial(self._load, folder),
                partial(self._set_error, folder),
                self._pool.workers,
                self._settings.keys,
            )
        return self._versions[folder.name]

    def _update(self, folder: VersionFolder, *, force: bool = False) -> None:
        versions = self._versions_of(folder)
        if versions.unloaded:
            return
        newest, pinned = self._settings.keep_versions, self._pinned(folder.name)
        dropped = versions.update(folder, newest, pinned, force=force)
        if dropped is not None:
            self._serve_without(dropped)
        if not self.complete:
            self._update_broken()

    def _load(self, folder: VersionFolder, bundle: Bundle) -> Model:
        if self._stop.is_set():
            raise BundleError("the service is stopping")
        name = bundle.metadata.name
        if folder.folders and folder.name != name:
            # Otherwise an older version, even a signed one, could take over a name by
            # being put in another folder.
            roots = {path.parent for path in folder.folders}
            for own in (root / name for root in roots.union(self._settings.folders)):
                if bundles.versions(own):
                    both = f"holds {name}, and so does {own}"
                    raise BundleError(f"{bundle.folder}: {both}")
        owner = self._folder_of.setdefault(name, folder.name)
        if owner != folder.name and self._versions[owner].models:
            raise BundleError(f"{bundle.folder}: another bundle is named {name} too")
        self._folder_of[name] = folder.name
        return self._loader.load(bundle, background=self.complete)

    def _serve_without(self, dropped: list[Model]) -> None:
        """Serve what is loaded, and retire what is no longer."""
        by_name = {
            next(iter(versions.models.values())).metadata.name: versions
            for versions in self._versions.values()
            if versions.models
        }
        self._publish(
            {name: versions.models for name, versions in by_name.items()},
            {name: versions.labels for name, versions in by_name.items()},
        )
        self._update_broken()  # at once: what is served is not broken
        for model in dropped:
            self._loader.retire(model)

    def _pinned(self, folder: str) -> set[int]:
        """The versions that the settings of default models name."""
        defaults = (getattr(self._settings, f"default_{task}") for task in TASKS)
        split = (reference.partition("@") for reference in defaults)
        return {int(v) for name, _, v in split if name == folder and v.isdecimal()}

    def _check_defaults(self) -> None:
        for task in TASKS:
            name = getattr(self._settings, f"default_{task}")
            if name and name not in self.tasks[task].by_reference:
                reason = f"UNROLLED_DEFAULT_{task.upper()}: no model {name} for {task}"
                self._load_errors.add(f"default_{task}", reason)

    def _set_error(self, folder: VersionFolder, path: Path, reason: str | None) -> None:
        if not self._stop.is_set():  # then the stop is the reason
            self._load_errors.set(folder.name, path, reason)

    def _update_broken(self) -> None:
        served = {name for name, versions in self._versions.items() if versions.models}
        self.broken = self._load_errors.by_key(served)


def _log_errors(job: Callable[[], None]) -> None:
    """Do a job; whatever it raises is logged, and the thread continues."""
    try:
        job()
    except OSError as error:
        log.error("the bundles can't be read: %s", error)
    except BaseException:
        with contextlib.suppress(BaseException):
            log.exception("the bundles could not be checked")
