"""A bundle, tried in a process of its own before any worker has it.

Its digests say that it is as it was written, not that it was written in good faith: one
that takes all memory, or a minute for a step, takes them from nobody here.
"""

import contextlib
import signal
import socket
import time

from model.bundle.bundle import BundleError, Metadata
from service import os_resources
from service.settings import Settings
from service.worker import loading
from service.worker.engine import ENGINES, Engine
from service.worker.protocol import Channel, LoadModel, LoadResult, ToWorker

LEAST_SECONDS = 1.0  # for one step, also where a request has less
STEPS = 256  # of the sequence, and of all rows, that are tried besides


def attempt(wanted: LoadModel, settings: Settings) -> LoadResult:
    """Returns what workers would say of a bundle, or why none is to load it."""
    try:
        found, loaded = loading.load(
            wanted, settings, ENGINES, os_resources.limit_memory
        )
        with loading.refusing(wanted.folder, settings):
            check_calls(loaded.engine, found.metadata, settings)
    except BundleError as error:
        return LoadResult(wanted.model, error=str(error))
    return LoadResult(wanted.model, loaded.engine.name, loaded.precision, loaded.reason)


def check_calls(engine: Engine, metadata: Metadata, settings: Settings) -> None:
    """That the least request could be answered, and a full batch computed.

    Raises:
        BundleError: it couldn't.
    """
    begun = time.process_time()
    loading.call(engine, metadata, 1, 1)
    seconds = time.process_time() - begun
    most = max(settings.request_seconds, LEAST_SECONDS)
    if seconds > most:
        told = f"takes {seconds:.1f} s for one step, {most:g} s at most"
        raise BundleError(f"{metadata.name}: {told} (UNROLLED_REQUEST_SECONDS)")
    rows = settings.batch_rows
    for shape in ((1, STEPS), (rows, max(1, STEPS // rows))):
        loading.call(engine, metadata, *shape)


def main(jobs: socket.socket, control: socket.socket, settings: str) -> None:
    """The process: it tries one bundle."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # ended by whoever asks
    jobs.close()
    os_resources.lower_thread_priority()
    os_resources.configure_allocator()
    channel = Channel(control, ToWorker)
    with contextlib.suppress(EOFError, OSError):
        for wanted in channel.receive():
            channel.send([attempt(wanted, Settings.model_validate_json(settings))])
