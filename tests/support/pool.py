"""Workers over engines of ours, on the event loop of a test."""

import asyncio
from contextlib import asynccontextmanager

from service import errors
from service.pool import spawn
from service.pool.admission import Admission
from service.pool.pool import Pool
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
from tests.support.servers import SECONDS, value


async def until(true, what):
    """Return as soon as `true()`; fail after a while."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.002)
    assert true(), what


async def sent():
    """Return when what was said to the workers is on its way."""
    for _ in range(10):  # turns of the loop, which may gather it
        await asyncio.sleep(0)


class Stage:
    """A pool with one model, and its engines: one a worker."""

    def __init__(self, pool, admission, metrics, engines, task):
        self.pool, self.admission, self.metrics = pool, admission, metrics
        self.engines, self.task = engines, task

    def submit(self, *sequences):
        """Sequences given as (length, first value); the request."""
        return self.admission.submit([frames(*one) for one in sequences])

    def go_on(self, *parts, return_state=True):
        """Parts of sequences given as (steps, first value, steps before); the
        request."""
        given, states = [], []
        for steps, first, start in parts:
            given.append(frames(start + steps, first)[start:])
            states.append(state_of(start, first).tobytes() if start else b"")
        return self.admission.submit(given, states, return_state=return_state)

    async def assert_right(self, request, *sequences):
        """The request's answers are those of these sequences, in this order."""
        parts = [(length, first, 0) for length, first in sequences]
        await self.assert_parts_right(request, *parts)

    async def assert_parts_right(self, request, *parts, return_state=False):
        """So are those of parts; and so are their new states, if they are kept."""
        async with asyncio.timeout(SECONDS):
            answers = await request.future
        for answer, (steps, first, start) in zip(answers, parts, strict=True):
            assert_belongs(answer, start + steps, first, self.task, start)
        for state, (steps, first, start) in zip(request.states, parts, strict=True):
            expected = state_of(start + steps, first).tobytes() if return_state else b""
            assert state == expected

    async def assert_fails(self, request):
        """It fails as our mistake, with nothing of the cause in what is told."""
        async with asyncio.timeout(SECONDS):
            error = await asyncio.gather(request.future, return_exceptions=True)
        assert isinstance(error[0], errors.InternalError)
        assert "poison" not in error[0].detail
        assert error[0].__cause__ is not None

    async def block(self):
        """Occupy every worker, with a step each, until `release`."""
        self.close_gates()
        before, requests = len(self.calls), []
        for number in range(len(self.engines)):
            requests.append(self.submit((1, -1.0 - number)))
            await until(
                lambda: len(self.calls) == before + len(requests),
                "it is occupied",
            )
        return requests

    async def release(self, requests):
        """Let the engines run, and see the answers of what occupied them."""
        self.open_gates()
        for number, request in enumerate(requests):
            await self.assert_right(request, (1, -1.0 - number))

    def calls_of(self, engine):
        return engine.calls[engine.loading :]

    @property
    def calls(self):
        """What the engines have computed since they were loaded."""
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
        """Every step that was admitted has been computed, or will not be."""
        await until(lambda: self.value("waiting_steps") == 0, "nothing waits")


@asynccontextmanager
async def stage(folder, task="classify", kind="lanes", *, workers=1, **limits):
    """A pool of workers that are threads of this process, until the block ends."""
    engines = []

    def make(found, settings):
        engines.append(FakeEngine(task))
        return engines[-1]

    limits = {"max_steps": 1000, "queue_steps": 100_000, "workers": workers} | limits
    settings, metrics = Settings(**limits), Metrics()
    pool = Pool(settings, metrics, spawn.thread({"given": make}))
    pool.start()
    try:
        await pool.attach()
        where = str(write_bundle(folder / "made", task, kind))
        await asyncio.to_thread(pool.load, 0, where)
        for engine in engines:
            engine.loading = len(engine.calls)
        metadata = metadata_of(task, kind)
        admission = Admission(pool, 0, metadata, settings, metrics)
        made = Stage(pool, admission, metrics, engines, task)
        yield made
        made.open_gates()
        await made.settled()
    finally:
        for engine in engines:
            engine.gate.set()
        await asyncio.to_thread(pool.close)
        await asyncio.sleep(0)  # the loop hears of it
