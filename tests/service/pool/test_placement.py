"""Which worker a job goes to, where others hold workers up for long."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from service.pool import pool, spawn
from service.pool.admission import Admission
from service.pool.pool import CALL_STEPS, Pool
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.pool import flush, wait_until
from tests.support.scheduler import FakeEngine, frames, metadata_of, write_bundle
from tests.support.servers import SECONDS

pytestmark = pytest.mark.anyio
WHOLE, STEPPED = 0, 1  # the models


class Two:
    """Two models, of which one needs its sequences whole, in some workers."""

    def __init__(self, pool, admissions, engines):
        self.pool, self._admissions, self.engines = pool, admissions, engines

    def submit(self, model, steps, first=1.0):
        return self._admissions[model].submit([frames(steps, first)])

    async def answered(self, *requests):
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(request.future for request in requests))

    def busy(self):
        """How many workers compute the whole sequences of a closed engine."""
        return sum(len(engine.calls) > engine.loading for engine in self.engines)


@asynccontextmanager
async def two(folder, workers):
    """They are given back with the engines of the first closed."""
    engines = {}

    def make(found, settings):
        kind = "whole" if found.metadata.bidirectional else "lanes"
        engines.setdefault(kind, []).append(FakeEngine("classify"))
        return engines[kind][-1]

    settings = Settings(workers=workers, max_steps=5_000)
    metrics = Metrics()
    made = Pool(settings, metrics, spawn.thread({"given": make}))
    made.start()
    try:
        await made.attach()
        admissions = []
        for model, kind in enumerate(["whole", "lanes"]):
            where = write_bundle(folder / kind, kind=kind)
            await asyncio.to_thread(made.load, model, str(where))
            metadata = metadata_of("classify", kind)
            admissions.append(Admission(made, model, metadata, settings, metrics))
        for engine in engines["whole"]:
            engine.loading = len(engine.calls)
            engine.closed()
        yield Two(made, admissions, engines["whole"])
    finally:
        for engine in engines["whole"]:
            engine.gate.set()
        await asyncio.to_thread(made.close)
        await flush()


async def test_other_models_go_on(tmp_path):
    """While another model is asked, sequences whose calls last long leave it a worker,
    however many they are; its answers come, though those calls never end."""
    async with two(tmp_path, 3) as made:
        await made.answered(made.submit(STEPPED, 3))
        long = [made.submit(WHOLE, CALL_STEPS + 1, float(n)) for n in range(9)]
        await wait_until(lambda: made.busy() == 2, "two workers are held up")
        for _ in range(6):
            some = [made.submit(STEPPED, 3, float(n)) for n in range(6)]
            await made.answered(*some)
        assert made.busy() == 2
        for engine in made.engines:
            engine.gate.set()
        await made.answered(*long)


async def test_all_workers_without_others(tmp_path, monkeypatch):
    """Where no other model has been asked of late, they have all workers."""
    async with two(tmp_path, 2) as made:
        await made.answered(made.submit(STEPPED, 3))
        monkeypatch.setattr(pool, "RECENT_SECONDS", 0.0)
        long = [made.submit(WHOLE, CALL_STEPS + 1, float(n)) for n in range(4)]
        await wait_until(lambda: made.busy() == 2, "all are at work")
        for engine in made.engines:
            engine.gate.set()
        await made.answered(*long)


async def test_short_ones_go_round(tmp_path):
    """A short sequence of the same model goes to a worker that isn't held up."""
    async with two(tmp_path, 2) as made:
        await made.answered(made.submit(STEPPED, 3))
        long = made.submit(WHOLE, CALL_STEPS + 1)
        await wait_until(lambda: made.busy() == 1, "one is held up")
        (free,) = [one for one in made.engines if len(one.calls) == one.loading]
        free.gate.set()
        short = [made.submit(WHOLE, CALL_STEPS, float(n)) for n in range(4)]
        await made.answered(*short)
        for engine in made.engines:
            engine.gate.set()
        await made.answered(long)


async def test_one_worker(tmp_path):
    """A worker alone computes everything."""
    async with two(tmp_path, 1) as made:
        made.engines[0].gate.set()
        await made.answered(made.submit(STEPPED, 3), made.submit(WHOLE, 2_000))
        await made.answered(made.submit(WHOLE, 2_000), made.submit(STEPPED, 3))
