"""A worker pool with fake engines, on the event loop of a test; and worker processes
that crash or hang."""

import asyncio
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, suppress

from service import errors
from service.pool import spawn
from service.pool.admission import Admission
from service.pool.pool import Pool
from service.pool.spawn import WorkerHandle
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.scheduler import (
    FakeEngine,
    assert_belongs,
    frames,
    metadata_of,
    state_of,
    write_bundle,
)
from tests.support.servers import ROOT, SECONDS, value


async def wait_until(true, what):
    """Return as soon as `true()`; fail after `SECONDS`."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.002)
    assert true(), what


async def flush():
    """Wait until messages to workers are sent."""
    for _ in range(10):  # iterations of the event loop, which may collect messages
        await asyncio.sleep(0)


class PoolHarness:
    """A pool that serves one model, and its engines: one for each worker.

    Sequences are given as (length, first value).
    """

    def __init__(self, pool, admission, metrics, engines, task):
        self.pool, self.admission, self.metrics = pool, admission, metrics
        self.engines, self.task = engines, task

    def submit(self, *sequences):
        """Submit a request with these sequences."""
        return self.admission.submit([frames(*sequence) for sequence in sequences])

    def resume(self, *parts, return_state=True):
        """Submit a request with parts of sequences, given as (steps, first value, steps
        before)."""
        sequences, states = [], []
        for steps, first, start in parts:
            sequences.append(frames(start + steps, first)[start:])
            states.append(state_of(start, first).tobytes() if start else b"")
        return self.admission.submit(sequences, states, return_state=return_state)

    async def assert_right(self, request, *sequences):
        """Assert that a request has the answers of these sequences, in order."""
        parts = [(length, first, 0) for length, first in sequences]
        await self.assert_parts_right(request, *parts)

    async def assert_parts_right(self, request, *parts, return_state=False):
        """The same for parts of sequences and, if requested, their new states."""
        async with asyncio.timeout(SECONDS):
            answers = await request.future
        for answer, (steps, first, start) in zip(answers, parts, strict=True):
            assert_belongs(answer, start + steps, first, self.task, start)
        for state, (steps, first, start) in zip(request.states, parts, strict=True):
            new_state = state_of(start + steps, first).tobytes()
            assert state == (new_state if return_state else b"")

    async def assert_fails(self, request):
        """Assert that a request fails with a 500 that does not disclose the cause."""
        async with asyncio.timeout(SECONDS):
            (error,) = await asyncio.gather(request.future, return_exceptions=True)
        assert isinstance(error, errors.InternalError)
        assert "poison" not in error.detail
        assert error.__cause__ is not None

    async def block(self):
        """Occupy every worker with a request of one step, until `release`."""
        self.close_gates()
        before, requests = len(self.calls), []
        for number in range(len(self.engines)):
            requests.append(self.submit((1, -1.0 - number)))
            await wait_until(
                lambda: len(self.calls) == before + len(requests), "it is occupied"
            )
        return requests

    async def release(self, requests):
        """Let the engines run, and await the answers of the blocking requests."""
        self.open_gates()
        for number, request in enumerate(requests):
            await self.assert_right(request, (1, -1.0 - number))

    def calls_of(self, engine):
        return engine.calls[engine.loading :]

    @property
    def calls(self):
        """All engine calls since the model was loaded."""
        return [call for engine in self.engines for call in self.calls_of(engine)]

    def close_gates(self):
        for engine in self.engines:
            engine.closed()

    def open_gates(self):
        for engine in self.engines:
            engine.gate.set()

    def hook(self, hook):
        for engine in self.engines:
            engine.hook = hook

    def value(self, name, **labels):
        text = self.metrics.text().decode()
        return value(text, f"unrolled_{name}", model="made", **labels)

    async def settled(self):
        """Wait until no admitted steps are pending."""
        await wait_until(lambda: self.value("waiting_steps") == 0, "nothing waits")


@asynccontextmanager
async def attached_pool(settings, start, metrics=None):
    """A pool on this event loop, until the block ends."""
    pool = Pool(settings, metrics or Metrics(), start)
    pool.start()
    try:
        await pool.attach()
        yield pool
    finally:
        await asyncio.to_thread(pool.close)
        await flush()  # the loop notices the end


@asynccontextmanager
async def running_pool(folder, task="classify", kind="lanes", *, workers=1, **limits):
    """A pool whose workers are threads of this process."""
    engines = []

    def make(bundle, settings):
        engines.append(FakeEngine(task))
        return engines[-1]

    limits = {"max_steps": 1000, "queue_steps": 100_000, "workers": workers} | limits
    settings, metrics = Settings(**limits), Metrics()
    async with attached_pool(settings, spawn.thread({"fake": make}), metrics) as pool:
        bundle = write_bundle(folder / "made", task, kind)
        await asyncio.to_thread(pool.load, 0, str(bundle))
        for engine in engines:
            engine.loading = len(engine.calls)
        metadata = metadata_of(task, kind)
        admission = Admission(pool, 0, metadata, settings, metrics)
        harness = PoolHarness(pool, admission, metrics, engines, task)
        try:
            yield harness
        finally:
            harness.open_gates()
        await harness.settled()


CRASH = 1e6  # frames with this number crash the worker
HANG = 1e5  # frames with this number hang the worker
# A worker process whose ONNX engine crashes or hangs at these numbers.
SCRIPT = f"""
import os, socket, sys, time
import numpy as np
from service.worker.onnx_engine import OnnxEngine
from service.settings import Settings
from service.worker.main import Worker

class FragileEngine(OnnxEngine):
    def __init__(self, bundle, settings):
        if bundle.metadata.name == sys.argv[4]:
            os._exit(1)
        if bundle.metadata.name == sys.argv[5]:
            time.sleep(600)
        super().__init__(bundle)

    def step(self, frames, lengths, state):
        if np.abs(frames).max() >= {CRASH}:
            os._exit(1)
        if np.abs(frames).max() >= {HANG}:
            time.sleep(600)
        return super().step(frames, lengths, state)

jobs, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
settings = Settings.model_validate_json(sys.argv[3])
Worker(jobs, control, settings, {{"fragile": FragileEngine}}).run()
"""


class FragileWorkers:
    """Starts such workers. Those with the numbers `crashing` crash when they load
    `tags`; those with the numbers `hanging` hang."""

    def __init__(self, crashing=(), hanging=()):
        self.processes = []
        self._crashing, self._hanging = crashing, hanging

    def __call__(self, settings):
        jobs, control = socket.socketpair(), socket.socketpair()
        number = len(self.processes)
        faults = [number in numbers for numbers in (self._crashing, self._hanging)]
        with jobs[1], control[1]:
            files = [jobs[1].fileno(), control[1].fileno()]
            arguments = [*map(str, files), settings.model_dump_json()]
            arguments += ["tags" if fault else "" for fault in faults]
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments], pass_fds=files, cwd=ROOT
            )
        self.processes.append(process)

        def join(seconds):  # as that of multiprocessing: it raises nothing
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)

        return WorkerHandle(jobs[0], control[0], join, process.kill)


class UnstartableWorkers(FragileWorkers):
    """The first attempts to replace a worker fail."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def __call__(self, settings):
        if len(self.processes) >= 2 and self.failures:
            self.failures -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return super().__call__(settings)


class LateWorkers(FragileWorkers):
    """The start of the third worker blocks until `resume` is set."""

    def __init__(self):
        super().__init__()
        self.starting, self.resume = threading.Event(), threading.Event()

    def __call__(self, settings):
        if len(self.processes) == 2 and not self.starting.is_set():
            self.starting.set()
            assert self.resume.wait(SECONDS)
        return super().__call__(settings)
