"""A bundle, checked and loaded within limits of memory: in a trial, then in workers."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from model.bundle import allowlist, bundle
from model.bundle.bundle import Bundle, BundleError, Metadata
from service.settings import Settings
from service.worker import engine
from service.worker.engine import Engine, Engines
from service.worker.protocol import LoadModel

log = logging.getLogger(__name__)

WARM_LENGTHS = (1, 16, 128)
# Its file, its arrays, the same in the order that the kernels take them in, and one more.
COPIES = 4
# What libraries say that get no memory.
NO_MEMORY = re.compile("alloc|MemoryError|ResourceExhausted", re.IGNORECASE)

Allow = Callable[[int], None]  # as `os_resources.limit_memory`


def load(
    wanted: LoadModel, settings: Settings, engines: Engines, allow: Allow
) -> tuple[Bundle, engine.LoadedEngine]:
    """Returns a bundle, and an engine that gives its golden answers.

    Raises:
        BundleError: it can't be loaded, or takes too much memory; with the reason.
    """
    with refusing(wanted.folder, settings):
        allow(settings.load_bytes)
        found = bundle.read(Path(wanted.folder), settings.keys)
        if wanted.digest not in ("", found.digest):
            raise BundleError(f"{wanted.folder}: has been replaced")
        sizes = ((found.folder / name).stat().st_size for name in found.metadata.files)
        allow(settings.load_bytes + COPIES * sum(sizes))
        allowlist.check(found)
        loaded = engine.load(found, settings, engines)
        _warm(loaded.engine, found.metadata)
    allow(settings.load_bytes)
    return found, loaded


@contextmanager
def refusing(folder: str, settings: Settings) -> Iterator[None]:
    """Raise whatever is raised as what is wrong with a bundle.

    Raises:
        BundleError: with the reason.
    """
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, BundleError):
            log.debug("load failed", exc_info=True)
            reason = f"{folder}: {type(error).__name__}: {error}"
        if NO_MEMORY.search(reason):
            most = settings.load_bytes // 2**20
            reason += f" (at most {most} MiB besides weights: UNROLLED_LOAD_BYTES)"
        raise BundleError(reason) from None


def _warm(engine: Engine, metadata: Metadata) -> None:
    """Run once at small and large sizes, so that the first caller doesn't wait
    for allocations and first-use compilations."""
    for rows in (1, 8):
        for steps in WARM_LENGTHS:
            call(engine, metadata, rows, steps)


def call(engine: Engine, metadata: Metadata, rows: int, steps: int) -> None:
    """Compute a batch of zeros."""
    engine.step(
        np.zeros((rows, steps, metadata.input.features), np.float32),
        np.full(rows, steps, np.int32),
        np.zeros((rows, metadata.state_size), np.float32),
    )
