"""The models in service: found, verified, loaded, warmed, and closed."""

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from model import bundle
from model.bundle import BundleError

from . import state_tokens
from .admission import Admission
from .catalogue import TASKS, Catalogue, Model
from .metrics import Metrics
from .pool import Pool
from .settings import Settings
from .state_tokens import Tokens

log = logging.getLogger(__name__)


class Registry(Catalogue):
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
        super().__init__(settings)
        self.failed = False
        self._metrics, self._pool, self._on_failure = metrics, pool, on_failure
        self._keys = state_tokens.keys(settings)
        self._numbers = itertools.count()
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
        return self.complete and not self.failed and not self._stop.is_set()

    def reasons(self) -> list[str]:
        """Why not everything is ready; empty when it is."""
        if self._stop.is_set():
            return ["stopping"]
        waiting = [] if self.complete else ["loading the bundles"]
        return [*waiting, *(self.broken.values() if self.failed else ())]

    @property
    def alive(self) -> bool:
        """Requests can be answered, or will be soon."""
        return self._stop.is_set() or self._pool.alive

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
        self.complete = True
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
        digest = found.digest
        tokens = Tokens(self._keys, found.metadata, digest, loaded.precision)
        made = Model(found, digest, loaded, admission, tokens)
        # A new one: others may be looking through the old one.
        self.models = {**self.models, name: made}
        self._count_features()
        told = (loaded.engine, loaded.precision)
        self._metrics.model_info.labels(name, version, *told, digest).set(1)
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
