"""The real engines: however a sequence is batched and divided, its answer is that of
the network, and no batch shape costs memory permanently."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from model.bundle import bundle
from service.pool import spawn
from service.pool.admission import Admission
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.worker.cost import Cost
from service.worker.engine import load
from service.worker.protocol import JobResult
from service.worker.scheduler import Scheduler
from tests.support.bundles import random_frames
from tests.support.pool import attached_pool
from tests.support.servers import ROOT, SECONDS

NAMES = ("walks", "tags", "both")
ENGINES = ("onnx", "tensorflow")
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_sequences(seed, count):
    """Sequences of 1 to 100 steps, and three much longer ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(1, 100, count).round().astype(int))
    lengths[rng.choice(count, 3, replace=False)] = rng.integers(300, 1000, 3)
    return [random_frames(rng, int(length)) for length in lengths]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_scheduled(bundles, saved_model, name, engine):
    """Sequences that arrive one after another, and are batched, get the answers that
    they would get alone."""
    checked = bundle.read(bundles / name / "1")
    loaded = load(checked, Settings(engine=engine))
    scheduler = Scheduler(
        loaded.engine,
        checked.metadata,
        Settings(batch_rows=16),
        cost=Cost(1e-4, 2e-5, 1e-5),
    )
    sequences = random_sequences(len(name), 60)
    rng = np.random.default_rng(0)
    waiting, answers = list(enumerate(sequences)), {}
    while waiting or scheduler.busy:
        for _ in range(int(rng.integers(4))):
            if waiting:
                scheduler.add(*waiting.pop(0))
        if scheduler.busy:
            for message in scheduler.run_batch():
                if isinstance(message, JobResult):
                    answers[message.number] = message.probabilities
    assert len(answers) == len(sequences)
    for number, frames in enumerate(sequences):
        expected = saved_model(name, frames)
        answer = np.frombuffer(answers[number], np.float32)
        np.testing.assert_allclose(answer.reshape(expected.shape), expected, **CLOSE)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("tags", "onnx"),
        *(
            pytest.param(name, engine, marks=pytest.mark.slow)
            for name in NAMES
            for engine in ENGINES
            if (name, engine) != ("tags", "onnx")
        ),
    ],
)
async def test_pooled(bundles, saved_model, name, engine):
    """So do sequences of many concurrent callers, computed by several processes."""
    settings, metrics = Settings(engine=engine, workers=2), Metrics()
    async with attached_pool(settings, spawn.process, metrics) as pool:
        folder = bundles / name / "1"
        loaded = await asyncio.to_thread(pool.load, 0, str(folder))
        assert loaded.engine == engine
        metadata = bundle.read(folder).metadata
        admission = Admission(pool, 0, metadata, settings, metrics)

        async def call(seed):
            sequences = random_sequences(seed, 12)
            for at in range(0, len(sequences), 4):
                part = sequences[at : at + 4]
                async with asyncio.timeout(SECONDS):
                    answers = await admission.submit(part).future
                for answer, frames in zip(answers, part, strict=True):
                    np.testing.assert_allclose(
                        answer, saved_model(name, frames), **CLOSE
                    )

        await asyncio.gather(*(call(seed) for seed in range(8)))


@pytest.mark.parametrize("name", NAMES)
def test_no_shape_is_traced(bundles, name):
    """TensorFlow traces no function for a new batch shape."""
    checked = bundle.read(bundles / name / "1")
    engine = load(checked, Settings(engine="tensorflow")).engine

    def step(rows, steps):
        frames = np.zeros((rows, steps, 3), np.float32)
        lengths = np.full(rows, steps, np.int32)
        state = np.zeros((rows, checked.metadata.state_size), np.float32)
        return engine.step(frames, lengths, state)

    step(1, 1)
    before = set(context.context().list_function_names())
    rng = np.random.default_rng(0)
    for rows, steps in rng.integers(1, 40, (100, 2)).tolist():
        step(rows, steps)
    assert not set(context.context().list_function_names()) - before

    # The check works: a function that is traced for each shape is seen.
    traced = tf.function(lambda frames: frames * 2)
    for steps in (3, 4):
        traced(tf.zeros((1, steps, 3)))
    assert len(set(context.context().list_function_names()) - before) >= 2


SHAPES = 2000
SCRIPT = f"""
import sys
from pathlib import Path

import numpy as np

from model.bundle import bundle
from service.worker.engine import load
from service.settings import Settings

checked = bundle.read(Path(sys.argv[1]))
engine = load(checked, Settings(engine=sys.argv[2])).engine
rng = np.random.default_rng(0)
shapes = [(n // 100 + 1, n % 100 + 1) for n in rng.permutation(6400)[:{SHAPES}].tolist()]
assert len(set(shapes)) == {SHAPES}
kept = []

def run_all():
    for rows, steps in shapes:
        frames = rng.normal(size=(rows, steps, 3)).astype(np.float32)
        lengths = rng.integers(1, steps + 1, rows).astype(np.int32)
        state = np.zeros((rows, checked.metadata.state_size), np.float32)
        frames[np.arange(steps) >= lengths[:, None]] = 0
        engine.step(frames, lengths, state)
        if sys.argv[3] == "leaking":
            kept.append(frames)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096

first = run_all()
print(run_all() - first)
"""
MIB = 2**20


def growth(folder, engine, kind):
    """Return the bytes by which a process grows when the same shapes come again."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), engine, kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_memory(bundles, name, engine):
    """Nothing is kept of thousands of batch shapes: when all come again, the process
    grows by less than 10 MiB."""
    assert growth(bundles / name / "1", engine, "sound") < 10 * MIB


@pytest.mark.nightly
def test_memory_is_seen(bundles):
    """The check works: an engine that keeps something of each call is seen."""
    assert growth(bundles / "walks" / "1", "onnx", "leaking") > 10 * MIB
