"""Which engine serves a bundle: the fastest that gives its golden answers."""

import logging
import re
import shutil
import sys

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.bundle import TOLERANCE, BundleError
from service.pool import spawn
from service.settings import Settings
from service.worker import engine
from service.worker.engine import ENGINES, load
from service.worker.tensorflow_engine import TensorFlowEngine
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import running, value


class Off(OnnxEngine):
    """An engine that misses the golden answers by a thousandth."""

    def step(self, frames, lengths, state):
        probabilities, state = super().step(frames, lengths, state)
        return probabilities + np.float32(1e-3), state


def broken(found, settings):
    raise RuntimeError("no such op")


def uncalled(found, settings):
    pytest.fail("this engine was not to be tried")


@pytest.fixture
def walks(bundles):
    return bundle.read(bundles / "walks" / "1")


@pytest.fixture
def _no_onnxruntime(monkeypatch):
    """A machine on which ONNX Runtime is not installed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "service.worker.onnx_engine")


# What stands in the place of ONNX Runtime, and what is told of it.
FAULTS = [
    pytest.param(Off, r"onnx misses the golden answers by 1\.\de-03", id="off"),
    pytest.param(broken, "onnx: RuntimeError: no such op", id="broken"),
]


class TestAuto:
    @pytest.mark.parametrize("name", ["walks", "tags", "both"])
    def test_the_fastest(self, bundles, name):
        """ONNX Runtime serves where nothing speaks against it, and TensorFlow is not
        even asked."""
        found = bundle.read(bundles / name / "1")
        loaded = load(found, Settings(), ENGINES | {"tensorflow": uncalled})
        assert (loaded.engine.name, loaded.precision) == ("onnx", "float32")
        assert loaded.reason == "the fastest, golden answers within 1e-04"
        assert found.golden().difference(loaded.engine.step) < TOLERANCE

    @pytest.mark.parametrize(("fault", "told"), FAULTS)
    def test_falls_back(self, walks, fault, told):
        """TensorFlow serves where ONNX Runtime fails, and it is told why."""
        loaded = load(walks, Settings(), ENGINES | {"onnx": fault})
        assert isinstance(loaded.engine, TensorFlowEngine)
        assert loaded.precision == "float32"
        why, _, which = loaded.reason.partition("; ")
        assert re.fullmatch(told, why)
        assert "golden answers within" in which
        assert walks.golden().difference(loaded.engine.step) < TOLERANCE

    @pytest.mark.usefixtures("_no_onnxruntime")
    def test_not_installed(self, walks):
        """So it does where ONNX Runtime is not installed."""
        loaded = load(walks, Settings())
        assert isinstance(loaded.engine, TensorFlowEngine)
        assert loaded.reason.startswith("onnx: onnxruntime is not installed; ")

    def test_spoilt_network(self, bundles, tmp_path):
        """So it does where the bundle's ONNX network is none."""
        folder = tmp_path / "walks" / "1"
        shutil.copytree(bundles / "walks" / "1", folder)
        (folder / bundle.NETWORK).write_bytes(b"no network")
        (folder / bundle.MARKER).unlink()
        bundle.seal(folder, bundle.read(bundles / "walks" / "1").metadata)
        loaded = load(bundle.read(folder), Settings())
        assert isinstance(loaded.engine, TensorFlowEngine)
        assert loaded.reason.startswith("onnx: ")


class TestChosen:
    @pytest.mark.parametrize("name", ["onnx", "tensorflow"])
    def test_by_setting(self, walks, name):
        """The engine that the setting names serves, and no other is tried."""
        others = {other: uncalled for other in ENGINES if other != name}
        loaded = load(walks, Settings(engine=name), ENGINES | others)
        assert loaded.engine.name == name
        assert loaded.reason == "chosen by the setting, golden answers within 1e-04"

    @pytest.mark.parametrize("name", ["onnx", "tensorflow"])
    @pytest.mark.parametrize("fault", [Off, broken])
    def test_never_falls_back(self, walks, name, fault):
        """Where it fails nothing serves in its place."""
        engines = {"onnx": uncalled, "tensorflow": uncalled} | {name: fault}
        with pytest.raises(BundleError) as caught:
            load(walks, Settings(engine=name), engines)
        assert str(walks.folder) in str(caught.value)
        assert ";" not in str(caught.value)

    @pytest.mark.usefixtures("_no_onnxruntime")
    def test_not_installed(self, walks):
        """What is not installed is named."""
        with pytest.raises(BundleError, match=r"onnx: onnxruntime is not installed$"):
            load(walks, Settings(engine="onnx"))


class TestNone:
    def test_each_reason(self, walks):
        """Where no engine serves, the reason of each is told."""
        engines = {"onnx": Off, "tensorflow": broken}
        with pytest.raises(BundleError) as caught:
            load(walks, Settings(), engines)
        text = str(caught.value)
        assert text.startswith(f"{walks.folder}: ")
        assert "onnx misses the golden answers by 1.0e-03" in text
        assert "tensorflow: RuntimeError: no such op" in text


class TestInt8:
    @pytest.fixture
    def small(self, quantized):
        return bundle.read(quantized / "small" / "1")

    def test_only_when_asked_for(self, small):
        """The int8 network is taken when the setting asks for it, and only then; it
        is held to its own bound, and answers otherwise than the exact one."""
        exact, int8 = (
            load(small, Settings(precision=precision))
            for precision in ("float32", "int8")
        )
        assert (exact.precision, int8.precision) == ("float32", "int8")
        bound = small.metadata.int8.bound
        golden = small.golden()
        assert golden.difference(exact.engine.step) < TOLERANCE
        assert TOLERANCE < golden.difference(int8.engine.step) <= bound

    @pytest.mark.parametrize("name", ["auto", "onnx"])
    def test_not_there(self, walks, name):
        """A bundle without one is served as it is, and not said to be int8."""
        loaded = load(walks, Settings(precision="int8", engine=name))
        assert (loaded.engine.name, loaded.precision) == ("onnx", "float32")
        assert walks.golden().difference(loaded.engine.step) < TOLERANCE

    def test_tensorflow_has_none(self, small):
        """TensorFlow serves the exact network, and says so."""
        loaded = load(small, Settings(precision="int8", engine="tensorflow"))
        assert loaded.precision == "float32"
        assert small.golden().difference(loaded.engine.step) < TOLERANCE

    @pytest.fixture
    def worse(self, small, tmp_path):
        """The same bundle, measured where int8 weights changed less than they do
        here."""
        said = small.metadata.int8.model_dump() | {"bound": 1e-7}
        return bundle.read(copy_bundle(small.folder, tmp_path / "w" / "1", int8=said))

    def test_misses_its_bound(self, worse):
        """Where it misses its bound it is refused."""
        with pytest.raises(BundleError, match="misses the golden answers"):
            load(worse, Settings(precision="int8", engine="onnx"))

    def test_misses_its_bound_auto(self, worse):
        """Where the choice is free, the exact network is served in its place, and it
        is told why."""
        loaded = load(worse, Settings(precision="int8"))
        assert loaded.precision == "float32"
        assert "misses the golden answers" in loaded.reason
        assert worse.golden().difference(loaded.engine.step) < TOLERANCE

    def test_misses_its_bound_without_tensorflow(self, worse):
        """So it is where TensorFlow is not installed: ONNX Runtime has the exact
        network too."""

        def absent(found, settings):
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

        engines = ENGINES | {"tensorflow": absent}
        loaded = load(worse, Settings(precision="int8"), engines)
        assert (loaded.engine.name, loaded.precision) == ("onnx", "float32")


class TestTold:
    @pytest.mark.parametrize(("fault", "told"), FAULTS)
    def test_everywhere(self, bundles, caplog, fault, told):
        """Which engine serves, in which precision and why, stands in the log, in
        /models and in the metrics."""
        caplog.set_level(logging.INFO, logger="service")
        engines = ENGINES | {"onnx": fault}
        settings = Settings(port=0, bundles=bundles / "walks", workers=1)
        with running(settings, start=spawn.thread(engines)) as made:
            (model,) = made.http.get("/models").json()["models"]
            text = made.metrics()
        (record,) = (one for one in caplog.records if one.message == "loaded")
        assert (record.engine, record.precision) == ("tensorflow", "float32")
        assert (model["engine"], model["precision"]) == ("tensorflow", "float32")
        assert record.reason == model["engine_reason"]
        assert re.fullmatch(told, record.reason.partition("; ")[0])
        labels = {"engine": "tensorflow", "precision": "float32", "model": "walks"}
        assert value(text, "unrolled_model_info", **labels) == 1

    def test_int8(self, quantized, caplog):
        """So does it where int8 weights serve."""
        caplog.set_level(logging.INFO, logger="service")
        settings = Settings(port=0, bundles=quantized, precision="int8", workers=1)
        with running(settings) as made:
            (model,) = made.http.get("/models").json()["models"]
            text = made.metrics()
            body = {"sequences": [[[1, 2, 3], [0.1, 0.2, 0.3]]]}
            answer = made.http.post("/label", json=body).json()
        assert (model["engine"], model["precision"]) == ("onnx", "int8")
        (record,) = (one for one in caplog.records if one.message == "loaded")
        assert record.precision == "int8"
        labels = {"engine": "onnx", "precision": "int8", "model": "small"}
        assert value(text, "unrolled_model_info", **labels) == 1
        found = bundle.read(quantized / "small" / "1")
        frames = np.array(body["sequences"], np.float32)
        begin = np.zeros((1, 16), np.float32)
        lengths = np.array([2], np.int32)
        given = answer["predictions"][0]["probabilities"]
        for precision, same in (("int8", True), ("float32", False)):
            network = engine.load(found, Settings(precision=precision)).engine
            expected, _ = network.step(frames, lengths, begin)
            assert np.allclose(given, expected[0], rtol=0, atol=1e-6) == same
