"""The choice of the worker for a job, while long engine calls block some workers."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from service.pool import pool, spawn
from service.pool.admission import Admission
from service.pool.pool import CALL_STEPS
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.pool import attached_pool, wait_until
from tests.support.scheduler import FakeEngine, frames, metadata_of, write_bundle
from tests.support.servers import SECONDS

pytestmark = pytest.mark.anyio
WHOLE, LANES = 0, 1  # the models: the first one reads whole sequences


class TwoModels:
    """A pool with two models, and the engines of the first one."""

    def __init__(self, admissions, engines):
        self._admissions, self.engines = admissions, engines

    def submit(self, model, steps, first=1.0):
        return self._admissions[model].submit([frames(steps, first)])

    async def answered(self, *requests):
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(request.future for request in requests))

    @property
    def blocked(self):
        """The number of workers in a call of the first model."""
        return sum(len(engine.calls) > engine.loading for engine in self.engines)

    def open_gates(self):
        for engine in self.engines:
            engine.gate.set()


@asynccontextmanager
async def two_models(folder, workers):
    """Calls of the first model block until `open_gates`."""
    engines = {}

    def make(bundle, settings):
        kind = "whole" if bundle.metadata.bidirectional else "lanes"
        engines.setdefault(kind, []).append(FakeEngine("classify"))
        return engines[kind][-1]

    settings, metrics = Settings(workers=workers, max_steps=5_000), Metrics()
    async with attached_pool(
        settings, spawn.thread({"fake": make}), metrics
    ) as started:
        admissions = []
        for model, kind in enumerate(["whole", "lanes"]):
            bundle = write_bundle(folder / kind, kind=kind)
            await asyncio.to_thread(started.load, model, str(bundle))
            metadata = metadata_of("classify", kind)
            admissions.append(Admission(started, model, metadata, settings, metrics))
        for engine in engines["whole"]:
            engine.loading = len(engine.calls)
            engine.closed()
        models = TwoModels(admissions, engines["whole"])
        try:
            yield models
        finally:
            models.open_gates()


async def test_other_models_go_on(tmp_path):
    """While another model is in use, blocking jobs leave it a worker, however many
    they are."""
    async with two_models(tmp_path, 3) as models:
        await models.answered(models.submit(LANES, 3))
        long = [models.submit(WHOLE, CALL_STEPS + 1, float(n)) for n in range(9)]
        await wait_until(lambda: models.blocked == 2, "two workers are blocked")
        for _ in range(6):
            short = [models.submit(LANES, 3, float(n)) for n in range(6)]
            await models.answered(*short)
        assert models.blocked == 2
        models.open_gates()
        await models.answered(*long)


async def test_all_workers_without_others(tmp_path, monkeypatch):
    """If no other model was used recently, blocking jobs use all workers."""
    async with two_models(tmp_path, 2) as models:
        await models.answered(models.submit(LANES, 3))
        monkeypatch.setattr(pool, "RECENT_SECONDS", 0.0)
        long = [models.submit(WHOLE, CALL_STEPS + 1, float(n)) for n in range(4)]
        await wait_until(lambda: models.blocked == 2, "all workers are blocked")
        models.open_gates()
        await models.answered(*long)


async def test_short_jobs_avoid_blocked_workers(tmp_path):
    """A short sequence of the same model goes to a worker that is not blocked."""
    async with two_models(tmp_path, 2) as models:
        await models.answered(models.submit(LANES, 3))
        long = models.submit(WHOLE, CALL_STEPS + 1)
        await wait_until(lambda: models.blocked == 1, "one worker is blocked")
        (free,) = [e for e in models.engines if len(e.calls) == e.loading]
        free.gate.set()
        short = [models.submit(WHOLE, CALL_STEPS, float(n)) for n in range(4)]
        await models.answered(*short)
        models.open_gates()
        await models.answered(long)


async def test_one_worker(tmp_path):
    """A single worker computes all jobs."""
    async with two_models(tmp_path, 1) as models:
        models.open_gates()
        await models.answered(models.submit(LANES, 3), models.submit(WHOLE, 2_000))
        await models.answered(models.submit(WHOLE, 2_000), models.submit(LANES, 3))
