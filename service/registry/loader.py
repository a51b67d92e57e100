"""Makes a model of a bundle: loads it in every worker, and unloads it when no request
uses it any more."""

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
    """Loads and retires models. It blocks: call it outside the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, pool: Pool):
        self._settings, self._metrics, self._pool = settings, metrics, pool
        self._keys = state_tokens.load_keys(settings)
        self._numbers = itertools.count()
        self._current: dict[tuple[str, ...], int] = {}  # numbers by name and version

    def load(self, bundle: Bundle, *, background: bool) -> Model:
        """Load a bundle in every worker.

        Args:
            background: see `Pool.load`.

        Raises:
            BundleError: a worker can't load it; with the reason.
        """
        name, version = bundle.metadata.name, bundle.metadata.version
        vocabulary, schema = bundle.vocabulary(), bundle.schema()
        number = next(self._numbers)
        digest = bundle.digest
        loaded = self._pool.load(
            number, str(bundle.folder), digest, background=background
        )
        self._current[name, version] = number
        admission = Admission(
            self._pool, number, bundle.metadata, self._settings, self._metrics
        )
        tokens = TokenSigner(self._keys, bundle.metadata, digest, loaded.precision)
        model = Model(
            *(bundle, digest, number, loaded, admission, tokens, vocabulary, schema)
        )
        weakref.finalize(model, self._unload, number, name, version).atexit = False
        self._metrics.model_info.labels(*_info(model)).set(1)
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
        return model

    def retire(self, model: Model) -> None:
        """Stop serving a model to new requests; those under way are answered, and so are
        streams. New workers load it until nothing uses it any more."""
        model.admission.retired = True
        self._metrics.model_info.remove(*_info(model))
        metadata = model.metadata
        log.info("retired", extra={"model": metadata.name, "version": metadata.version})

    def _unload(self, number: int, *name_and_version: str) -> None:
        """Nothing refers to the model any more."""
        self._pool.unload(number)
        if self._current.get(name_and_version) == number:  # no other has replaced it
            del self._current[name_and_version]
            self._metrics.remove_model(*name_and_version)


def _info(model: Model) -> tuple[str, ...]:
    loaded = model.loaded
    name, version = model.metadata.name, model.metadata.version
    return name, version, loaded.engine, loaded.precision, model.digest
