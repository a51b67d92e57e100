"""Loading a bundle: checks, memory limits, and a trial in a process of its own.

A bundle's digests prove that it is unchanged, not that it is benign. So before any
worker loads it, a trial process does: a bundle that needs too much memory, or a minute
for one step, harms nothing else.
"""

import contextlib
import logging
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from service import os_resources
from service.settings import Settings
from service.worker import engine
from service.worker.engine import ENGINES, Engine, Engines, LoadedEngine
from service.worker.protocol import Channel, LoadModel, LoadResult, ToWorker

log = logging.getLogger(__name__)

WARM_UP_LENGTHS = (1, 16, 128)
# Memory for a bundle's files, in multiples of their size: the file, its arrays, the
# arrays in the order that the kernels need, and a reserve.
COPIES = 4
# What libraries say when an allocation fails.
OUT_OF_MEMORY = re.compile("alloc|MemoryError|ResourceExhausted", re.IGNORECASE)
MIN_STEP_SECONDS = 1.0  # a step may take this long, however short the request timeout
TRIAL_STEPS = 256  # of the single sequence, and of all rows, in a trial

LimitMemory = Callable[[int], None]  # see `os_resources.limit_memory`


def load(
    request: LoadModel,
    settings: Settings,
    engines: Engines,
    limit_memory: LimitMemory,
) -> tuple[Bundle, LoadedEngine]:
    """Read and check a bundle, and load an engine that reproduces its golden answers.

    Raises:
        BundleError: it cannot be loaded, or takes too much memory; with the reason.
    """
    with bundle_errors(request.folder, settings):
        limit_memory(settings.load_bytes)
        checked = bundle.read(Path(request.folder), settings.keys)
        if request.digest not in ("", checked.digest):
            raise BundleError(f"{request.folder}: has been replaced")
        files = (checked.folder / name for name in checked.metadata.files)
        size = sum(path.stat().st_size for path in files)
        limit_memory(settings.load_bytes + COPIES * size)
        allowlist.check(checked)
        if request.precision:
            settings = settings.model_copy(update={"precision": request.precision})
        loaded = engine.load(checked, settings, engines)
        if request.precision not in ("", loaded.precision):  # tokens name the precision
            raise BundleError(f"{request.folder}: {loaded.reason}")
        # So that the first request does not wait for allocations and compilations.
        for rows in (1, 8):
            for steps in WARM_UP_LENGTHS:
                _compute_zeros(loaded.engine, checked.metadata, rows, steps)
    limit_memory(settings.load_bytes)
    return checked, loaded


@contextlib.contextmanager
def bundle_errors(folder: str, settings: Settings) -> Iterator[None]:
    """Turn every exception into a `BundleError` with the reason."""
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, BundleError):
            log.debug("load failed", exc_info=True)
            reason = f"{folder}: {type(error).__name__}: {error}"
        if OUT_OF_MEMORY.search(reason):
            limit = settings.load_bytes // 2**20
            reason += f" (at most {limit} MiB besides weights: UNROLLED_LOAD_BYTES)"
        raise BundleError(reason) from None


def _compute_zeros(engine: Engine, metadata: Metadata, rows: int, steps: int) -> None:
    engine.step(
        np.zeros((rows, steps, metadata.input.features), np.float32),
        np.full(rows, steps, np.int32),
        np.zeros((rows, metadata.state_size), np.float32),
    )


def try_bundle(request: LoadModel, settings: Settings) -> LoadResult:
    """Load a bundle, compute batches with it, and return the result for the worker
    pool."""
    try:
        checked, loaded = load(request, settings, ENGINES, os_resources.limit_memory)
        with bundle_errors(request.folder, settings):
            check_calls(loaded.engine, checked.metadata, settings)
    except BundleError as error:
        return LoadResult(request.model, error=str(error))
    return LoadResult(
        request.model, loaded.engine.name, loaded.precision, loaded.reason
    )


def check_calls(engine: Engine, metadata: Metadata, settings: Settings) -> None:
    """Check that the smallest request can be answered in time, and compute a long
    sequence and a full batch.

    Raises:
        BundleError: one step takes too long.
    """
    started = time.process_time()
    _compute_zeros(engine, metadata, 1, 1)
    seconds = time.process_time() - started
    limit = max(settings.request_seconds, MIN_STEP_SECONDS)
    if seconds > limit:
        reason = f"takes {seconds:.1f} s for one step, {limit:g} s at most"
        raise BundleError(f"{metadata.name}: {reason} (UNROLLED_REQUEST_SECONDS)")
    rows = settings.batch_rows
    _compute_zeros(engine, metadata, 1, TRIAL_STEPS)
    _compute_zeros(engine, metadata, rows, max(1, TRIAL_STEPS // rows))


def trial_main(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    """Run a trial process: it answers one `LoadModel` request."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent process ends it
    jobs.close()
    os_resources.lower_thread_priority()
    os_resources.configure_allocator()
    channel = Channel(control, ToWorker)
    with contextlib.suppress(EOFError, OSError):
        for request in channel.receive():
            result = try_bundle(request, Settings.model_validate_json(settings))
            channel.send([result])
