"""The models in service: found, verified, loaded, warmed, and closed."""

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model import bundle
from model.bundle import Bundle, BundleError, Metadata

from . import errors
from .admission import Admission
from .messages import Loaded
from .metrics import Metrics
from .pool import Pool
from .settings import Settings

log = logging.getLogger(__name__)

TASKS = ("classify", "label")


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle whose engine has given its golden answers in every worker."""

    bundle: Bundle
    loaded: Loaded
    admission: Admission

    @property
    def metadata(self) -> Metadata:
        return self.bundle.metadata


class Registry:
    """Loads in the background; knows at any time what is ready, and why not."""

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
        self.models: dict[str, Model] = {}
        self.broken: dict[str, str] = {}
        # By task: how many features its models take; under None the default's.
        self.features: dict[str, dict[str | None, int]] = {t: {} for t in TASKS}
        self.failed = False
        self._settings, self._metrics = settings, metrics
        self._pool, self._on_failure = pool, on_failure
        self._numbers = itertools.count()
        self._done = False
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._load_all, name="loader", daemon=True
        )

    def start(self) -> None:
        """Load every bundle in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop loading, and end the workers."""
        self._stop.set()
        self._pool.close()
        if self._thread.ident is not None:
            self._thread.join(self._settings.grace_seconds)

    @property
    def ready(self) -> bool:
        return self._done and not self.failed and not self._stop.is_set()

    def reasons(self) -> list[str]:
        """Why not everything is ready; empty when it is."""
        if self._stop.is_set():
            return ["stopping"]
        waiting = [] if self._done else ["loading the bundles"]
        return [*waiting, *(self.broken.values() if self.failed else ())]

    @property
    def alive(self) -> bool:
        """Requests can be answered, or will be soon."""
        return self._stop.is_set() or self._pool.alive

    def get(self, name: str) -> Model:
        """A model by name.

        Raises:
            NotReady: it is still loading, or broken.
            UnknownModel: there is none of that name.
        """
        model = self.models.get(name)
        if model is not None:
            return model
        if not self._done:
            raise errors.NotReady("the models are still loading", headers=_SOON)
        if name in self.broken:
            raise errors.NotReady(f"the bundle of {name} is broken")
        known = ", ".join(self.models) or "none"
        raise errors.UnknownModel(f"no model of that name; there are: {known}")

    def default(self, task: str) -> Model | None:
        """The model for requests that name none: the setting's, or the first."""
        name = getattr(self._settings, f"default_{task}")
        fitting = [m for m in self.models.values() if m.metadata.task == task]
        if name:
            fitting = [model for model in fitting if model.metadata.name == name]
        elif not self._done:
            return None  # which is the first is not known yet
        return next(iter(fitting), None)

    def choose(self, name: str | None, task: str) -> Model:
        """The model that a request names, or the default of its task.

        Raises:
            NotReady, UnknownModel: as `get`.
            InvalidRequest: the model is for the other task.
        """
        if name is None:
            model = self.default(task)
            if model is not None:
                return model
            if not self._done:
                raise errors.NotReady("the models are still loading", headers=_SOON)
            raise errors.UnknownModel(f"no model here answers /{task} by default")
        model = self.get(name)
        if model.metadata.task != task:
            other = model.metadata.task
            raise errors.InvalidRequest(
                f"{model.metadata.name} is for POST /{other}",
                [errors.FieldError("model", f"is for the task {other}, not {task}")],
            )
        return model

    def _load_all(self) -> None:
        begun = time.perf_counter()
        root = self._settings.bundles
        try:
            folders = bundle.find(root)
        except OSError as error:
            folders = []
            self._break(str(root), f"{root}: {error}")
        if not folders and not self.broken:
            self._break(str(root), f"{root}: no bundle found")
        for folder in folders:
            if self._stop.is_set():
                return
            try:
                self._load(folder)
            except BundleError as error:
                if self._stop.is_set():
                    return
                self._break(folder.parent.name, str(error))
            except Exception as error:
                log.debug("load failed", exc_info=True)
                self._break(
                    folder.parent.name, f"{folder}: {type(error).__name__}: {error}"
                )
        self._check_defaults()
        # Nothing to serve is a failure, whatever the setting says.
        self.failed = self.failed or not self.models
        self._done = True
        self._count_features()  # the defaults are known now
        if self.failed:
            self._on_failure()
            return
        self._metrics.ready.set(1)
        # What is there stays: no need to look through it for garbage ever again.
        gc.collect()
        gc.freeze()
        seconds = time.perf_counter() - begun
        log.info(
            "ready", extra={"models": list(self.models), "seconds": round(seconds, 2)}
        )

    def _load(self, folder: Path) -> None:
        found = bundle.read(folder)
        if self._stop.is_set():
            return
        name, version = found.metadata.name, found.metadata.version
        if name in self.models:
            raise BundleError(f"{folder}: another bundle is named {name} too")
        number = next(self._numbers)
        loaded = self._pool.load(number, str(folder))
        admission = Admission(
            self._pool, number, found.metadata, self._settings, self._metrics
        )
        # A new one: others may be looking through the old one.
        self.models = {**self.models, name: Model(found, loaded, admission)}
        self._count_features()
        told = (loaded.engine, loaded.precision)
        self._metrics.model_info.labels(name, version, *told, found.digest).set(1)
        log.info(
            "loaded",
            extra={
                "model": name,
                "version": version,
                "engine": told[0],
                "precision": told[1],
                "reason": loaded.reason,
            },
        )

    def _count_features(self) -> None:
        for task in TASKS:
            taken: dict[str | None, int] = {
                name: model.metadata.input.features
                for name, model in self.models.items()
                if model.metadata.task == task
            }
            default = self.default(task)
            if default is not None:
                taken[None] = default.metadata.input.features
            self.features[task] = taken

    def _check_defaults(self) -> None:
        for task in TASKS:
            name = getattr(self._settings, f"default_{task}")
            model = self.models.get(name)
            if name and (model is None or model.metadata.task != task):
                self._break(
                    f"default_{task}",
                    f"UNROLLED_DEFAULT_{task.upper()}: no model {name} for {task}",
                )

    def _break(self, name: str, reason: str) -> None:
        reason = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
        log.error("broken bundle: %s", reason)
        self.broken[name] = reason
        self.failed = self.failed or not self._settings.skip_broken


_SOON = {"Retry-After": "1"}
