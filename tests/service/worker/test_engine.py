"""The choice of the engine: the fastest that reproduces a bundle's golden answers."""

import logging
import re
import shutil
import sys
import time

import numpy as np
import pytest

import model.bundle
from model.bundle import bundle
from model.bundle.bundle import TOLERANCE, BundleError
from service.pool import spawn
from service.settings import Settings
from service.worker import engine
from service.worker.engine import ENGINES, load
from service.worker.tensorflow_engine import TensorFlowEngine
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import running, value

WITHIN = "golden answers within 1e-04"


class InexactEngine(OnnxEngine):
    """An engine that misses the golden answers by a thousandth."""

    def step(self, frames, lengths, state):
        probabilities, state = super().step(frames, lengths, state)
        return probabilities + np.float32(1e-3), state


def raises(bundle, settings):
    raise RuntimeError("no such op")


def never(bundle, settings):
    pytest.fail("this engine must not be tried")


def not_installed(bundle, settings):
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")


# Faults in the place of ONNX Runtime, and their reasons.
FAULTS = {
    InexactEngine: r"onnx \(float32\) misses the golden answers by 1\.\de-03",
    raises: "onnx: RuntimeError: no such op",
}


@pytest.fixture(scope="module")
def walks(bundles):
    return bundle.read(bundles / "walks" / "1")


@pytest.fixture
def _no_onnxruntime(monkeypatch):
    """A machine on which ONNX Runtime is not installed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("service.worker.onnx_engine", "model.bundle.onnx_step"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(model.bundle, "onnx_step")


def assert_exact(loaded, bundle):
    assert loaded.precision == "float32"
    assert bundle.golden().difference(loaded.engine.step) < TOLERANCE


class TestAuto:
    def test_fastest(self, bundles):
        """ONNX Runtime serves if it can, and TensorFlow is not even loaded."""
        for name in ("walks", "tags", "both"):
            checked = bundle.read(bundles / name / "1")
            loaded = load(checked, Settings(), ENGINES | {"tensorflow": never})
            assert (loaded.engine.name, loaded.reason) == (
                "onnx",
                f"the fastest, {WITHIN}",
            )
            assert_exact(loaded, checked)

    def test_fallback(self, walks, bundles, tmp_path):
        """TensorFlow serves if ONNX Runtime fails, or the bundle's network does; the
        reason tells why."""
        for fault, reason in FAULTS.items():
            loaded = load(walks, Settings(), ENGINES | {"onnx": fault})
            assert isinstance(loaded.engine, TensorFlowEngine)
            first, _, second = loaded.reason.partition("; ")
            assert re.fullmatch(reason, first)
            assert WITHIN in second
            assert_exact(loaded, walks)
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        (folder / bundle.NETWORK).write_bytes(b"no network")
        (folder / bundle.MARKER).unlink()
        bundle.seal(folder, walks.metadata)
        loaded = load(bundle.read(folder), Settings())
        assert isinstance(loaded.engine, TensorFlowEngine)
        assert loaded.reason.startswith("onnx: ")

    @pytest.mark.usefixtures("_no_onnxruntime")
    def test_not_installed(self, walks):
        """TensorFlow serves if ONNX Runtime is not installed."""
        loaded = load(walks, Settings())
        assert isinstance(loaded.engine, TensorFlowEngine)
        assert loaded.reason.startswith("onnx: onnxruntime is not installed; ")
        with pytest.raises(BundleError, match=r"onnx: onnxruntime is not installed$"):
            load(walks, Settings(engine="onnx"))

    def test_none(self, walks):
        """If no engine serves, the error has the reason of each."""
        with pytest.raises(BundleError) as caught:
            load(walks, Settings(), {"onnx": InexactEngine, "tensorflow": raises})
        text = str(caught.value)
        assert text.startswith(f"{walks.folder}: ")
        assert "onnx (float32) misses the golden answers by 1.0e-03" in text
        assert "tensorflow: RuntimeError: no such op" in text


def test_setting(walks):
    """The engine that the setting names serves or fails; no other is tried."""
    for name in ENGINES:
        others = dict.fromkeys(ENGINES, never)
        loaded = load(walks, Settings(engine=name), others | {name: ENGINES[name]})
        assert loaded.engine.name == name
        assert loaded.reason == f"chosen by the setting, {WITHIN}"
        for fault in FAULTS:
            with pytest.raises(BundleError) as caught:
                load(walks, Settings(engine=name), others | {name: fault})
            assert str(walks.folder) in str(caught.value)
            assert ";" not in str(caught.value)


class TestInt8:
    @pytest.fixture
    def small(self, quantized):
        return bundle.read(quantized / "small" / "1")

    @pytest.fixture
    def worse(self, small, tmp_path):
        """The same bundle with int8 answers that this machine doesn't give."""
        folder = copy_bundle(small.folder, tmp_path / "w" / "1")
        shutil.copy(folder / bundle.GOLDEN, folder / bundle.INT8_GOLDEN)
        int8 = small.metadata.int8.model_copy(update={"bound": 1e-7})
        (folder / bundle.MARKER).unlink()
        bundle.seal(folder, small.metadata.model_copy(update={"int8": int8}))
        return bundle.read(folder)

    def test_setting(self, small):
        """Int8 weights are used if the setting asks for them, and give their own golden
        answers, which differ from those of float32."""
        assert_exact(load(small, Settings(precision="float32")), small)
        loaded = load(small, Settings(precision="int8"))
        assert loaded.precision == "int8"
        golden = small.golden(precision="int8")
        assert golden.difference(loaded.engine.step) == 0
        difference = small.golden().difference(loaded.engine.step)
        assert TOLERANCE < difference <= small.metadata.int8.bound

    @pytest.mark.parametrize(
        ("slow", "chosen"), [("float32", "int8"), ("int8", "float32")]
    )
    def test_auto(self, small, slow, chosen):
        """By default the faster of both is used, and the reason says how much faster."""

        class Slow(OnnxEngine):
            def __init__(self, bundle, settings):
                super().__init__(bundle, settings)
                self.seconds = 0.01 if settings.precision == slow else 0

            def step(self, *arguments):
                time.sleep(self.seconds)
                return super().step(*arguments)

        loaded = load(small, Settings(), ENGINES | {"onnx": Slow})
        assert loaded.precision == chosen
        assert re.search(r"; int8 takes \d+\.\d\d of the time of", loaded.reason)

    def test_auto_beyond_the_bound(self, worse):
        """By default a network that misses its golden answers isn't used."""
        loaded = load(worse, Settings())
        assert_exact(loaded, worse)
        assert "onnx (int8) misses the golden answers" in loaded.reason

    def test_one_choice(self, quantized):
        """All workers use the weights that the first chose, also one that starts later."""
        chosen = []

        def first_int8(bundle, settings):
            chosen.append(settings.precision)
            return ENGINES["onnx"](bundle, settings)

        settings = Settings(port=0, bundles=quantized, workers=3)
        start = spawn.thread(ENGINES | {"onnx": first_int8})
        with running(settings, start=start) as server:
            (model,) = server.http.get("/models").json()["models"]
        assert chosen == ["int8", "float32", model["precision"], model["precision"]]

    def test_not_available(self, small, walks):
        """A bundle without int8 weights, or TensorFlow, serves exact ones."""
        for name in ("auto", "onnx"):
            loaded = load(walks, Settings(precision="int8", engine=name))
            assert loaded.engine.name == "onnx"
            assert_exact(loaded, walks)
        settings = Settings(precision="int8", engine="tensorflow")
        assert_exact(load(small, settings), small)

    def test_beyond_the_bound(self, worse):
        """Int8 weights beyond their bound are refused. With a free choice, the exact
        network serves, by ONNX Runtime if TensorFlow is not installed."""
        with pytest.raises(BundleError, match="misses the golden answers"):
            load(worse, Settings(precision="int8", engine="onnx"))
        loaded = load(worse, Settings(precision="int8"))
        assert "misses the golden answers" in loaded.reason
        assert_exact(loaded, worse)
        engines = ENGINES | {"tensorflow": not_installed}
        loaded = load(worse, Settings(precision="int8"), engines)
        assert loaded.engine.name == "onnx"
        assert_exact(loaded, worse)


class TestShown:
    """Engine, precision and reason are in the log, in `/models` and in the metrics."""

    def test_fallback(self, bundles, caplog):
        caplog.set_level(logging.INFO, logger="service")
        settings = Settings(port=0, bundles=bundles / "walks", workers=1)
        engines = {"onnx": raises, "tensorflow": ENGINES["tensorflow"]}
        with running(settings, start=spawn.thread(engines)) as server:
            (model,) = server.http.get("/models").json()["models"]
            text = server.metrics()
        (record,) = (r for r in caplog.records if r.message == "loaded")
        assert (record.engine, record.precision) == ("tensorflow", "float32")
        assert (model["engine"], model["precision"]) == ("tensorflow", "float32")
        assert record.reason == model["engine_reason"]
        assert record.reason.startswith(f"{FAULTS[raises]}; ")
        labels = {"engine": "tensorflow", "precision": "float32", "model": "walks"}
        assert value(text, "unrolled_model_info", **labels) == 1

    def test_int8(self, quantized, caplog):
        caplog.set_level(logging.INFO, logger="service")
        settings = Settings(port=0, bundles=quantized, precision="int8", workers=1)
        with running(settings) as server:
            (model,) = server.http.get("/models").json()["models"]
            text = server.metrics()
            body = {"sequences": [[[1, 2, 3], [0.1, 0.2, 0.3]]]}
            response = server.http.post("/label", json=body).json()
        assert (model["engine"], model["precision"]) == ("onnx", "int8")
        (record,) = (r for r in caplog.records if r.message == "loaded")
        assert record.precision == "int8"
        labels = {"engine": "onnx", "precision": "int8", "model": "small"}
        assert value(text, "unrolled_model_info", **labels) == 1
        checked = bundle.read(quantized / "small" / "1")
        frames = np.array(body["sequences"], np.float32)
        state, lengths = np.zeros((1, 16), np.float32), np.array([2], np.int32)
        answer = response["predictions"][0]["probabilities"]
        for precision, same in (("int8", True), ("float32", False)):
            network = engine.load(checked, Settings(precision=precision)).engine
            probabilities, _ = network.step(frames, lengths, state)
            assert np.allclose(answer, probabilities[0], rtol=0, atol=1e-6) == same
