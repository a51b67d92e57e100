"""int8 weights: quantized, independent of the batch, compared with float32, reported, and
left out if they change too much."""

import logging
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle import bundle
from model.bundle.metadata import QuantizedPart
from model.cli import console
from model.evaluation import evaluation
from model.export import publish, quantize
from model.export.quantize import QuantizationError
from model.network import reload
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


def publish_int8(root, network, dataset, name="made", int8=True):
    config = make_config(name=name, network=network.config.model_dump())
    return publish.publish(network, HISTORY, dataset, config, root, int8=int8)[0]


# Name: the task, the sequences of each part, and settings of the network.
KINDS = {
    "classify": ("classify", (15, 70, 12), {"stack": 2, "read": "last+mean"}),
    "label": ("label", (15, 40, 12), {}),
    "label-both-ways-no-test-part": ("label", (15, 60, 0), {"bidirectional": True}),
}


def write_quantized(root):
    with mock.patch.multiple(quantize, MAX_ERROR=100, MAX_CALIBRATION=100):
        _write_quantized(root)


def _write_quantized(root):
    for name, (task, counts, options) in KINDS.items():
        network, dataset = make(task, counts=counts, **options)
        publish_int8(root, network, dataset, name)
        np.save(root / f"{name}.npy", dataset.targets)


@pytest.fixture(scope="module")
def folders():
    return cached("int8", write_quantized, Path(__file__))


@pytest.fixture(scope="module", params=KINDS)
def quantized_bundle(request, folders):
    """A bundle with int8 weights, and the data that it was compared on."""
    task, counts, _ = KINDS[request.param]
    targets = np.load(folders / f"{request.param}.npy")
    dataset = replace(make_dataset(task, counts=counts, classes=4), targets=targets)
    return bundle.read(folders / request.param / "1"), dataset


def make_step(exported, path):
    return reload.onnx(exported.folder / path)


def predict(exported, path, dataset):
    """Probabilities [M, C], each sequence by itself."""
    step, results = make_step(exported, path), []
    for row in range(len(dataset)):
        frames = dataset.sequence(row)[None]
        state = np.zeros((1, exported.metadata.state_size), np.float32)
        lengths = np.array([frames.shape[1]], np.int32)
        output = step(frames, lengths, state)[0]
        results.append(output[0] if dataset.task == "label" else output)
    return np.concatenate(results)


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


class TestIndependence:
    """An int8 answer is the same bit for bit, whatever else is computed with it."""

    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def test_batches_and_chunks(self, quantized_bundle, data):
        """Alone, in a batch in any order with huge frames beside it, and cut anywhere."""
        exported, dataset = quantized_bundle
        step, size = make_step(exported, bundle.INT8), exported.metadata.state_size
        rows = data.draw(st.permutations(range(len(dataset))))[:8]
        frames, lengths = evaluation.pad([dataset.sequence(row) for row in rows])
        wild = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
        frames[wild] *= np.float32(data.draw(st.sampled_from([1e6, -1e30, 0])))
        zeros = np.zeros((8, size), np.float32)
        answers, states = step(frames, lengths, zeros)
        for row, length in enumerate(lengths):
            cut = data.draw(st.integers(0, int(length) - 1)) if size else 0
            state, parts = zeros[:1], []
            for start, end in ((0, cut), (cut, length)):
                if end > start:
                    part = frames[row : row + 1, start:end]
                    answer, state = step(part, np.array([end - start], np.int32), state)
                    parts.append(answer[0])
            expected = (
                answers[row, :length] if dataset.task == "label" else answers[row]
            )
            whole = np.concatenate(parts) if dataset.task == "label" else parts[-1]
            np.testing.assert_array_equal(whole, expected)
            np.testing.assert_array_equal(state[0], states[row])

    def test_measured(self, quantized_bundle, monkeypatch):
        """Weights without the units of constant outputs are found out and left out."""
        exported, dataset = quantized_bundle
        check = exported.metadata, dataset.part("train")
        assert not quantize._depends_on_batch(make_step(exported, bundle.INT8), *check)

        def step(frames, lengths, state):
            answer, state = make_step(exported, bundle.INT8)(frames, lengths, state)
            return answer + np.float32(1e-7) * np.abs(frames).max(), state

        assert quantize._depends_on_batch(step, *check)


class TestComparison:
    def test_numbers(self, quantized_bundle):
        """`bundle.json` records what the int8 file computes on validation and test."""
        exported, dataset = quantized_bundle
        parts = {name: dataset.part(name) for name in ("validation", "test")}
        recorded = exported.metadata.int8.parts
        assert set(recorded) == {name for name, part in parts.items() if len(part)}
        for name, part in recorded.items():
            targets = parts[name].targets
            float32 = predict(exported, bundle.NETWORK, parts[name])
            int8 = predict(exported, bundle.INT8, parts[name])
            close = {"rel": 1e-4, "abs": 1e-6}
            assert part.count == len(targets)
            for error, answers in ((part.error, int8), (part.float32_error, float32)):
                wrong = 100 * (answers.argmax(1) != targets).mean()
                assert error == pytest.approx(wrong, **close)
            same = 100 * (int8.argmax(1) == float32.argmax(1)).mean()
            assert part.same_class == pytest.approx(same, **close)
            error = calibration_error(int8, targets)
            assert part.calibration_error == pytest.approx(error, rel=1e-3)
            changes = np.abs(int8 - float32)
            assert part.largest == pytest.approx(changes.max(), **close)
            assert part.mean == pytest.approx(changes.mean(), **close)
            assert part.largest > 0

    def test_golden(self, quantized_bundle):
        """The int8 answers that an engine must reproduce are exact here. The bound for
        other processors is twice the difference from float32."""
        exported, _ = quantized_bundle
        step = make_step(exported, bundle.INT8)
        sums = exported.metadata.sums
        assert exported.golden(precision="int8").difference(step, sums) == 0
        difference = exported.golden().difference(step, sums)
        assert exported.metadata.int8.bound == pytest.approx(2 * difference, rel=1e-6)
        assert difference > bundle.TOLERANCE


class TestFile:
    def test_weights(self, quantized_bundle):
        """The recurrent weights of every layer are int8, in int8 operators; the file is
        smaller, and listed in `bundle.json`."""
        exported, _ = quantized_bundle
        model = onnx.load(str(exported.folder / bundle.INT8))
        layers = [n for n in model.graph.node if "LSTM" in n.op_type]
        passes = exported.metadata.stack  # the full stacks, and the rest
        kinds = [node.op_type for node in layers]
        assert kinds == ["DynamicQuantizeLSTM"] * 2 * passes
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for node in layers:
            assert {types[name] for name in node.input[1:3]} == {onnx.TensorProto.INT8}
        sizes = [
            sum(len(tensor.raw_data) for tensor in graph.initializer)
            for graph in (
                onnx.load(str(exported.folder / path)).graph
                for path in (bundle.INT8, bundle.NETWORK)
            )
        ]
        assert sizes[0] < 0.7 * sizes[1]
        assert bundle.INT8.as_posix() in exported.metadata.files

    def test_quiet(self, tmp_path, caplog, capfd):
        """Quantization prints and logs nothing, and leaves the log as it was; the same
        network gives the same file."""
        network = make()[0].for_export()
        caplog.clear()
        capfd.readouterr()  # the first network in a process makes TensorFlow speak
        filters = logging.getLogger("root").filters[:]
        written = []
        for name in ("first", "second"):
            (tmp_path / name / bundle.EXTRA).mkdir(parents=True)
            quantize.write(tmp_path / name, network, 4.0)
            written.append((tmp_path / name / bundle.INT8).read_bytes())
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("root").filters == filters
        assert written[0] == written[1]


class TestCard:
    def test_section(self, quantized_bundle):
        """The card and `inspect` show the int8 network's metrics."""
        exported, _ = quantized_bundle
        card = (exported.folder / bundle.REPORT / "card.md").read_text()
        (section,) = (s for s in card.split("\n## ") if s.startswith("int8\n"))
        with console.console.capture() as output:
            console.console.print(console.bundle_table(exported))
        for name, part in exported.metadata.int8.parts.items():
            for text in (
                "UNROLLED_PRECISION",
                bundle.INT8.name,
                f"| {name.capitalize()} ({part.count:,}) |",
                f"| {part.float32_error:.2f} % | {part.error:.2f} % |",
                f"{part.same_class:.2f} %",
                f"| {part.largest:.4f} | {part.mean:.5f} |",
            ):
                assert text in section
            assert f"{part.error:.2f} % of {part.count:,}" in output.get()

    @pytest.mark.slow
    def test_none(self, tmp_path):
        """A bundle without int8 weights doesn't mention them."""
        network, dataset = make(counts=(15, 12, 9))
        folder = publish_int8(tmp_path, network, dataset, int8=False)
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

    def test_limits(self):
        """Each change over its limit is named, with the part, the value and the limit."""
        good = QuantizedPart(
            **{"count": 9, "error": 5.1, "float32_error": 5.0, "same_class": 99.0},
            **{"calibration_error": 1.2, "float32_calibration_error": 1.0},
            **{"largest": 0.05, "mean": 0.001},
        )
        assert quantize._excesses({"test": good}) == []
        for field, value, reason in (
            ("error", 5.3, "percentage points of error more: 0.3 (at most 0.2"),
            ("calibration_error", 1.5, "(ECE) more: 0.5 (at most 0.3"),
            ("largest", 0.06, "change of a probability: 0.06 (at most 0.05"),
            ("largest", float("nan"), "change of a probability: nan"),
        ):
            part = good.model_copy(update={field: value})
            (excess,) = quantize._excesses({"validation": good, "test": part})
            assert excess.startswith("On the test part: ")
            assert reason in excess

    @pytest.mark.slow
    def test_too_much(self, tmp_path):
        """Weights that 8 bits can't hold are left out, and the bundle says why; if they
        are asked for, nothing is published. Some are hundreds of times larger than the
        others, and all matter."""
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
        folder = publish_int8(tmp_path, network, dataset, int8=None)
        exported = bundle.read(folder)
        assert exported.metadata.int8 is None
        assert "change of a probability" in exported.metadata.int8_refused
        names = {bundle.INT8.as_posix(), bundle.INT8_GOLDEN.as_posix()}
        assert not names & set(exported.metadata.files)
        card = (folder / bundle.REPORT / "card.md").read_text()
        assert exported.metadata.int8_refused in card


@pytest.fixture
def file(tmp_path):
    write_data(tmp_path / "walks.jsonl")
    return tmp_path / "walks.jsonl"


@pytest.mark.slow
class TestCommand:
    def test_lstm(self, file, tmp_path):
        """`train` and `export` add int8 weights to an LSTM, unless there is `--no-int8`.
        `inspect` shows them."""
        trained = tmp_path / "runs" / "walks"
        options = ("--output", tmp_path / "first", "--runs", tmp_path / "runs")
        run("train", file, "--cell", "lstm", *TINY, *options)
        run("export", trained, "--int8", "--output", tmp_path / "second")
        run("export", trained, "--no-int8", "--output", tmp_path / "plain")
        first, second, plain = (
            bundle.read(tmp_path / name / "walks" / "1")
            for name in ("first", "second", "plain")
        )
        assert first.metadata.int8 == second.metadata.int8
        assert set(first.metadata.int8.parts) == {"validation", "test"}
        assert plain.metadata.int8 is None
        assert "int8" in run("inspect", tmp_path / "first").stdout

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
