"""Loading: bundles that need too much memory or time are refused before a worker loads
them, and background loading yields to requests."""

import asyncio

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model.bundle import bundle
from model.bundle.bundle import NETWORK, BundleError
from model.bundle.metadata import Metadata
from service import os_resources
from service.errors import InternalError
from service.pool import spawn
from service.pool.admission import Admission
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.worker import background, engine, loading
from service.worker.background import BackgroundEngine
from service.worker.protocol import LoadModel, LoadResult
from tests.support.bundles import copy_bundle, random_frames
from tests.support.pool import attached_pool
from tests.support.scheduler import FakeEngine, assert_belongs, frames, state_of
from tests.support.servers import SECONDS

SETTINGS = Settings(workers=1, engine="onnx", load_bytes=64 * 2**20)
COUNT = 8 * 2**20  # numbers: 64 MiB as int64, and 32 MiB more as float32


@pytest.fixture
def greedy(bundles, tmp_path):
    """Makes a copy of `walks` with the same answers, which allocates an array whose
    length grows with the squares of all frames."""

    def make(least, factor):
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "greedy" / "1")
        network = onnx.load(folder / NETWORK)
        constants = {
            "row": np.array([1, -1]),
            "column": np.array([-1, 1]),
            "none": np.array([], np.int64),
            "zero": np.array(0),
            "one": np.array(1),
            "least": np.array(least),
            "factor": np.float32(factor),
            "nothing": np.float32(0),
        }
        network.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
        )
        (last,) = (n for n in network.graph.node if "probabilities" in n.output)
        last.output[list(last.output).index("probabilities")] = "right"
        steps = [
            ("Reshape", ["frames", "row"], "a"),
            ("Reshape", ["frames", "column"], "b"),
            ("MatMul", ["a", "b"], "squares"),
            ("Mul", ["squares", "factor"], "c"),
            ("Reshape", ["c", "none"], "d"),
            ("Cast", ["d"], "e"),
            ("Add", ["e", "least"], "count"),
            ("Range", ["zero", "count", "one"], "f"),
            ("Cast", ["f"], "g"),
            ("Reshape", ["g", "row"], "h"),
            ("Reshape", ["g", "column"], "i"),
            ("MatMul", ["h", "i"], "j"),
            ("Mul", ["j", "nothing"], "k"),
            ("Add", ["right", "k"], "probabilities"),
        ]
        kinds = {"e": TensorProto.INT64, "g": TensorProto.FLOAT}
        network.graph.node.extend(
            helper.make_node(
                name,
                inputs,
                [output],
                **({"to": kinds[output]} if name == "Cast" else {}),
            )
            for name, inputs, output in steps
        )
        (folder / NETWORK).write_bytes(network.SerializeToString())
        text = (folder / bundle.MARKER).read_text()
        bundle.seal(folder, Metadata.model_validate_json(text))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.anyio
async def test_too_much_memory(bundles, greedy):
    """Though its golden answers are right, the workers never load it, and go on."""
    async with attached_pool(SETTINGS, spawn.process) as pool:
        walks, folder = bundles / "walks" / "1", greedy(COUNT, 0)
        await asyncio.to_thread(pool.load, 0, str(walks))
        (worker,) = pool.workers.all
        with pytest.raises(BundleError, match=r"64 MiB.*UNROLLED_LOAD_BYTES"):
            await asyncio.to_thread(pool.load, 1, str(folder))
        assert pool.workers.all == [worker]
        assert worker.models == {0}
        enough = SETTINGS.model_copy(update={"load_bytes": 512 * 2**20})
    async with attached_pool(enough, spawn.process) as pool:
        assert (await asyncio.to_thread(pool.load, 1, str(folder))).engine == "onnx"


@pytest.mark.slow
@pytest.mark.anyio
async def test_too_much_memory_later(bundles, greedy):
    """If a bundle needs too much memory for some frames, only requests with these
    fail: the worker goes on."""
    metadata = bundle.read(bundles / "walks" / "1").metadata
    async with attached_pool(SETTINGS, spawn.process) as pool:
        await asyncio.to_thread(pool.load, 1, str(greedy(0, 1)))
        admission = Admission(pool, 1, metadata, SETTINGS, Metrics())
        sequence = random_frames(np.random.default_rng(0), 20)
        (worker,) = pool.workers.all
        for offset, fails in ((0, False), (3e4, True), (0, False)):
            async with asyncio.timeout(SECONDS):
                request = admission.submit([sequence + np.float32(offset)])
                if fails:
                    with pytest.raises(InternalError):
                        await request.future
                else:
                    assert np.isfinite(await request.future).all()
        assert pool.workers.all == [worker]


def test_trial(bundles, monkeypatch):
    """A trial loads a bundle under a memory limit, and reports the engine or the
    error; a failed allocation names the setting."""
    limits = []
    monkeypatch.setattr(os_resources, "limit_memory", limits.append)
    folder = bundles / "walks" / "1"
    result = loading.try_bundle(LoadModel(3, str(folder)), SETTINGS)
    assert (result.model, result.engine, result.error) == (3, "onnx", "")
    assert result.reason == "chosen by the setting, golden answers within 1e-04"
    files = bundle.read(folder).metadata.files
    size = sum((folder / name).stat().st_size for name in files)
    least = SETTINGS.load_bytes
    assert limits == [least, least + loading.COPIES * size, least]
    request = LoadModel(3, str(folder), digest="another")
    result = loading.try_bundle(request, SETTINGS)
    assert result == LoadResult(3, error=f"{folder}: has been replaced")
    with (
        pytest.raises(BundleError, match=r"^here: MemoryError: .*64 MiB"),
        loading.bundle_errors("here", SETTINGS),
    ):
        raise MemoryError


def test_too_slow(bundles, monkeypatch):
    """One step must not take longer than the request timeout."""
    checked = bundle.read(bundles / "walks" / "1")
    loaded = engine.load(checked, SETTINGS)
    loading.check_calls(loaded.engine, checked.metadata, SETTINGS)
    monkeypatch.setattr(loading, "MIN_STEP_SECONDS", 0)
    settings = SETTINGS.model_copy(update={"request_seconds": 1e-7})
    with pytest.raises(BundleError, match=r"for one step, 1e-07 s at most"):
        loading.check_calls(loaded.engine, checked.metadata, settings)


@pytest.mark.anyio
async def test_trial_hangs(bundles):
    """A trial that takes too long is ended."""
    settings = Settings(workers=1, engine="tensorflow", load_seconds=0.5)
    async with attached_pool(settings, spawn.process) as pool:
        with pytest.raises(BundleError, match=r"did not load within 0.5 s"):
            await asyncio.to_thread(pool.load, 0, str(bundles / "walks" / "1"))
        assert len(pool.workers.all) == 1


def test_background_engine(monkeypatch):
    """Calls wait until the worker is idle, but not for ever."""
    sequence = frames(3, 7)[None], np.array([3], np.int32), state_of(0, 7)[None]
    idle = iter([False, False, True])
    answer, _ = BackgroundEngine(FakeEngine(), lambda: next(idle)).step(*sequence)
    assert_belongs(answer[0], 3, 7)
    assert next(idle, None) is None
    monkeypatch.setattr(background, "MAX_WAIT_SECONDS", 0.002)
    inner = FakeEngine()
    answer, state = BackgroundEngine(inner, lambda: False).step(*sequence)
    assert_belongs(answer[0], 3, 7)
    np.testing.assert_array_equal(state[0], state_of(3, 7))
    assert not inner.faults
