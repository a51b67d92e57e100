"""A bundle made a model: loaded by every worker, and dropped when nobody has it."""

import itertools
import logging
import weakref

from model.bundle.bundle import Bundle
from service.pool.admission import Admission
from service.pool.pool import Pool
from service.registry import state_tokens
from service.registry.catalog import Model
from service.registry.state_tokens import TokenSigner
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Loader:
    """Makes models; not on the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, pool: Pool):
        self._settings, self._metrics, self._pool = settings, metrics, pool
        self._keys = state_tokens.load_keys(settings)
        self._numbers = itertools.count()
        self._current: dict[tuple[str, ...], int] = {}  # numbers by name and version

    def load(self, found: Bundle, *, background: bool) -> Model:
        """A bundle in service.

        Args:
            background: see `Pool.load`.

        Raises:
            BundleError: a worker can't load it; with the reason.
        """
        name, version = found.metadata.name, found.metadata.version
        number = next(self._numbers)
        digest = found.digest
        loaded = self._pool.load(
            number, str(found.folder), digest, background=background
        )
        self._current[name, version] = number
        admission = Admission(
            self._pool, number, found.metadata, self._settings, self._metrics
        )
        tokens = TokenSigner(self._keys, found.metadata, digest, loaded.precision)
        made = Model(found, digest, number, loaded, admission, tokens)
        weakref.finalize(made, self._gone, number, name, version).atexit = False
        self._metrics.model_info.labels(*_info(made)).set(1)
        log.info(
            "loaded",
            extra={
                "model": name,
                "version": version,
                "engine": loaded.engine,
                "precision": loaded.precision,
                "reason": loaded.reason,
            },
        )
        return made

    def retire(self, model: Model) -> None:
        """It is meant by no new request; those that have it are answered."""
        self._pool.forget(model.number)
        self._metrics.model_info.remove(*_info(model))
        told = {"model": model.metadata.name, "version": model.metadata.version}
        log.info("not served any more", extra=told)

    def _gone(self, number: int, *model: str) -> None:
        """Nobody has it any more."""
        self._pool.unload(number)
        if self._current.get(model) == number:  # else another took its place
            del self._current[model]
            self._metrics.remove_model(*model)


def _info(model: Model) -> tuple[str, ...]:
    loaded = model.loaded
    name, version = model.metadata.name, model.metadata.version
    return name, version, loaded.engine, loaded.precision, model.digest
