"""int8 weights: quantized, compared with float32, reported, and refused if they change
too much."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from model.bundle import bundle
from model.cli import console
from model.evaluation import evaluation
from model.export import publish, quantize
from model.export.quantize import QuantizationError
from model.training import loop
from model.training.runs import Epoch
from tests.model.cli.commands import TINY, refusal, run, write_data
from tests.support.bundles import cached
from tests.support.networks import make_config, make_dataset

HISTORY = [Epoch(1, 1.0, 40.0, 2.0, 45.0, 0.01, True)]


def make(task="label", *, counts=(15, 12, 70), cell="lstm", **settings):
    """A network of random weights, and data of which it gets about 70 % right."""
    dataset = make_dataset(task, counts=counts, classes=4)
    config = make_config(network={"layers": 2, "hidden": 12, "cell": cell, **settings})
    network = loop.build(dataset, config)
    random = np.random.default_rng(7)
    for weight in network.trainable_variables:
        weight.assign(random.normal(0, 0.4, weight.shape))
    predicted = evaluation.predict(dataset, network).scores.argmax(1)
    right = random.uniform(size=len(predicted)) < 0.7
    return network, replace(
        dataset, targets=np.where(right, predicted, dataset.targets)
    )


def publish_int8(root, network, dataset, name="made"):
    config = make_config(name=name, network=network.config.model_dump())
    publish.publish(network, HISTORY, dataset, config, root, int8=True)


# Name: the task, the sequences of each part, and settings of the network.
KINDS = {
    "classify": ("classify", (15, 70, 12), {"stack": 2}),
    "label-both-ways-no-test-part": ("label", (15, 60, 0), {"bidirectional": True}),
}


def write_quantized(root):
    for name, (task, counts, settings) in KINDS.items():
        network, dataset = make(task, counts=counts, **settings)
        publish_int8(root, network, dataset, name)
        np.save(root / f"{name}.npy", dataset.targets)


@pytest.fixture(scope="module")
def folders():
    return cached("int8", write_quantized, Path(__file__))


@pytest.fixture(scope="module", params=KINDS)
def quantized_bundle(request, folders):
    """A bundle with int8 weights, the data that it was compared on, and its part."""
    task, counts, _ = KINDS[request.param]
    targets = np.load(folders / f"{request.param}.npy")
    dataset = replace(make_dataset(task, counts=counts, classes=4), targets=targets)
    part = "validation"
    return bundle.read(folders / request.param / "1"), dataset.part(part), part


def session(exported, path):
    """On one core, as in the service: int8 answers differ with the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(exported.folder / path), options, providers=["CPUExecutionProvider"]
    )


def predict(exported, path, dataset, batch_size):
    """Probabilities [M, C], in batches of similar length, computed from the file."""
    run = session(exported, path)
    lengths = np.asarray(dataset.lengths, np.int32)
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    results = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(lengths[row] for row in rows)
        frames = np.zeros((len(rows), longest, 3), np.float32)
        for place, row in enumerate(rows):
            frames[place, : lengths[row]] = dataset.sequence(row)
        inputs = {"frames": frames, "lengths": lengths[rows]}
        if size := exported.metadata.state_size:
            inputs["state"] = np.zeros((len(rows), size), np.float32)
        outputs = run.run(["probabilities"], inputs)[0]
        for place, row in enumerate(rows):
            label = dataset.task == "label"
            output = outputs[place]
            results[row] = output[: lengths[row]] if label else output[None]
    return np.concatenate([results[row] for row in range(len(lengths))])


def calibration_error(probabilities, targets):
    """Of Guo et al. (2017), in 15 bins, in percent."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            total += inside.sum() * gap
    return 100 * total / len(targets)


class TestComparison:
    def test_numbers(self, quantized_bundle):
        """`bundle.json` records what the int8 file computes on that part, with batches
        of one sequence and of 32."""
        exported, dataset, part = quantized_bundle
        recorded = exported.metadata.int8
        float32 = predict(exported, bundle.NETWORK, dataset, 1)
        int8 = predict(exported, bundle.INT8, dataset, 1)
        batched = predict(exported, bundle.INT8, dataset, 32)
        targets = dataset.targets
        close = {"rel": 1e-4, "abs": 1e-6}
        assert recorded.part == part
        wrong = 100 * (int8.argmax(1) != targets).mean()
        assert recorded.error == pytest.approx(wrong, **close)
        same = 100 * (int8.argmax(1) == float32.argmax(1)).mean()
        assert recorded.same_class == pytest.approx(same, **close)
        error = calibration_error(int8, targets)
        assert recorded.calibration_error == pytest.approx(error, rel=1e-3)
        assert recorded.largest == pytest.approx(np.abs(int8 - float32).max(), **close)
        assert recorded.batch_neighbours == pytest.approx(
            np.abs(batched - int8).max(), **close
        )
        assert recorded.largest > 0
        assert recorded.batch_neighbours > 0
        # The float32 network's own metrics stay as they are.
        wrong = 100 * (float32.argmax(1) != targets).mean()
        assert exported.metadata.training.parts[part].error == pytest.approx(wrong)

    def test_bound(self, quantized_bundle):
        """The bound is twice the difference from the golden answers, so that the
        service that loads the bundle accepts it."""
        exported, _, _ = quantized_bundle
        run = session(exported, bundle.INT8)
        stepped = exported.metadata.state_size > 0

        def step(frames, lengths, state):
            inputs = {"frames": frames, "lengths": lengths}
            outputs = run.run(None, inputs | ({"state": state} if stepped else {}))
            return outputs[0], outputs[1] if stepped else state

        difference = exported.golden().difference(step)
        assert exported.metadata.int8.bound == pytest.approx(2 * difference, rel=1e-6)
        assert difference > bundle.TOLERANCE


class TestFile:
    def test_weights(self, quantized_bundle):
        """The recurrent weights of every layer are int8, in int8 operators; the file is
        smaller, and listed in `bundle.json`."""
        exported, _, _ = quantized_bundle
        model = onnx.load(str(exported.folder / bundle.INT8))
        layers = [n for n in model.graph.node if "LSTM" in n.op_type]
        passes = exported.metadata.stack  # the full stacks, and the rest
        kinds = [node.op_type for node in layers]
        assert kinds == ["DynamicQuantizeLSTM"] * 2 * passes
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for node in layers:
            assert {types[name] for name in node.input[1:3]} == {onnx.TensorProto.INT8}
        sizes = [
            (exported.folder / p).stat().st_size for p in (bundle.INT8, bundle.NETWORK)
        ]
        assert sizes[0] < sizes[1]
        assert bundle.INT8.as_posix() in exported.metadata.files

    def test_quiet(self, quantized_bundle, tmp_path, caplog, capfd):
        """Quantization prints and logs nothing, and leaves the log as it was."""
        exported, _, _ = quantized_bundle
        (tmp_path / bundle.EXTRA).mkdir()
        shutil.copy(exported.folder / bundle.NETWORK, tmp_path / bundle.NETWORK)
        filters = logging.getLogger("root").filters[:]
        quantize.write(tmp_path)
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("root").filters == filters
        written = (tmp_path / bundle.INT8).read_bytes()
        assert written == (exported.folder / bundle.INT8).read_bytes()


class TestCard:
    def test_section(self, quantized_bundle):
        """The card and `inspect` show the int8 network's metrics."""
        exported, _, part = quantized_bundle
        card = (exported.folder / bundle.REPORT / "card.md").read_text()
        (section,) = (s for s in card.split("\n## ") if s.startswith("int8\n"))
        int8, float32 = exported.metadata.int8, exported.metadata.training.parts[part]
        for text in (
            "UNROLLED_PRECISION=int8",
            bundle.INT8.name,
            f"the {part} part",
            f"| {float32.error:.2f} % | {int8.error:.2f} % |",
            f"| {float32.calibration_error:.2f} % | {int8.calibration_error:.2f} % |",
            f"{int8.same_class:.2f} %",
            f"{int8.largest:.4f}",
            f"{int8.batch_neighbours:.4f}",
        ):
            assert text in section
        with console.console.capture() as output:
            console.console.print(console.bundle_table(exported))
        assert f"{part} error {int8.error:.2f} %" in output.get()

    @pytest.mark.slow
    def test_none(self, tmp_path):
        """A bundle without int8 weights doesn't mention them."""
        network, dataset = make(counts=(15, 12, 9))
        config = make_config(name="plain", network=network.config.model_dump())
        folder, _ = publish.publish(network, HISTORY, dataset, config, tmp_path)
        plain = bundle.read(folder)
        assert plain.metadata.int8 is None
        assert bundle.INT8.as_posix() not in plain.metadata.files
        assert "int8" not in (folder / bundle.REPORT / "card.md").read_text()


def assert_nothing(folder):
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert bundle.names(folder) == {}


class TestRefusals:
    def test_gru(self, tmp_path):
        """A GRU is refused before anything is written."""
        network, dataset = make(cell="gru", counts=(15, 12, 9))
        with pytest.raises(QuantizationError, match="no int8 GRU"):
            publish_int8(tmp_path, network, dataset)
        assert_nothing(tmp_path)
        with pytest.raises(QuantizationError, match=r"--int8 is for LSTM networks"):
            quantize.check("gru")
        quantize.check("lstm")

    @pytest.mark.parametrize(
        ("limit", "value", "reason"),
        [
            ("MAX_ERROR", -100.0, "percentage points of error more"),
            ("MAX_CALIBRATION", -100.0, "expected calibration error (ECE) more"),
            ("MAX_CHANGE", 0.0, "change of a probability by batch neighbours"),
        ],
    )
    def test_over_a_limit(self, folders, monkeypatch, limit, value, reason):
        """A network that changes more than a limit allows is refused; the message has
        the value and the limit."""
        exported = bundle.read(folders / "classify" / "1")
        dataset = make_dataset("classify", counts=KINDS["classify"][1], classes=4)
        dataset = replace(dataset, targets=np.load(folders / "classify.npy")).part(
            "test"
        )
        monkeypatch.setattr(quantize, limit, value)
        with pytest.raises(QuantizationError, match="nothing was published") as caught:
            quantize.compare(
                exported.folder, exported.metadata, exported.golden(), "test", dataset
            )
        assert reason in str(caught.value)
        assert f"(at most {value:g} is allowed)" in str(caught.value)

    @pytest.mark.slow
    def test_too_much(self, tmp_path):
        """Weights that 8 bits can't hold are refused, and nothing is published: some
        are hundreds of times larger than the others, and all matter."""
        network, dataset = make(counts=(15, 12, 30))
        (layer,) = network.encoder[0]
        kernel, recurrent, bias = layer.get_weights()
        kernel[2] *= 1000  # of a feature that does next to nothing
        dataset = replace(dataset, frames=dataset.frames * [1, 1, 1e-3])
        layer.set_weights([kernel, recurrent, bias])
        scale = network.scale.numpy()
        network.scale.assign(scale * [1, 1, 1e-6])
        with pytest.raises(QuantizationError, match="change of a probability"):
            publish_int8(tmp_path, network, dataset)
        assert_nothing(tmp_path)


@pytest.fixture
def file(tmp_path):
    write_data(tmp_path / "walks.jsonl")
    return tmp_path / "walks.jsonl"


@pytest.mark.slow
class TestCommand:
    def test_lstm(self, file, tmp_path):
        """`train --int8` and `export --int8` add int8 weights; without it there are
        none. `inspect` shows them."""
        trained = tmp_path / "runs" / "walks"
        options = ("--output", tmp_path / "first", "--runs", tmp_path / "runs")
        run("train", file, "--cell", "lstm", *TINY, "--int8", *options)
        run("export", trained, "--int8", "--output", tmp_path / "second")
        run("export", trained, "--output", tmp_path / "plain")
        first, second, plain = (
            bundle.read(tmp_path / name / "walks" / "1")
            for name in ("first", "second", "plain")
        )
        assert first.metadata.int8 == second.metadata.int8
        assert first.metadata.int8.part == "validation"
        assert plain.metadata.int8 is None
        assert "int8" in run("inspect", tmp_path / "first").stdout
        metrics = json.loads(
            (second.folder / bundle.REPORT / "metrics.json").read_text()
        )
        assert metrics["parts"]["test"]["error"] >= 0

    def test_gru(self, file, tmp_path):
        """A GRU is refused in one line, before it is trained, and when a run is
        exported."""
        options = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        arguments = ("train", file, "--cell", "gru", *TINY, "--int8", *options)
        assert refusal(*arguments).startswith("error: --int8 is for LSTM networks")
        assert not (tmp_path / "r").exists()
        run("train", file, "--cell", "gru", *TINY, *options)
        trained = tmp_path / "r" / "walks"
        result = run("export", trained, "--int8", "--output", tmp_path / "x", code=2)
        assert "GRU" in result.stderr
        assert_nothing(tmp_path / "x")
