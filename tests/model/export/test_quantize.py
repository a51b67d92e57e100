"""int8 weights: written beside the exact ones, measured, told, and refused where they
change too much."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from model import __main__ as command
from model.bundle import bundle
from model.cli import console
from model.export import publish, quantize
from model.export.quantize import QuantizationError
from model.training import evaluation, loop
from model.training.runs import Epoch
from tests.support.networks import make_config, make_dataset, write_json_lines

HISTORY = [Epoch(1, 1.0, 40.0, 2.0, 45.0, 0.01, True)]
TINY = ("--layers", "1", "--hidden", "4", "--epochs", "2", "--batch", "8")


def make(task="label", *, counts=(15, 12, 70), cell="lstm", **settings):
    """A network of random weights, and data of which it gets about 70 % right."""
    dataset = make_dataset(task, counts=counts, classes=4)
    config = make_config(network={"layers": 2, "hidden": 12, "cell": cell, **settings})
    network = loop.build(dataset, config)
    random = np.random.default_rng(7)
    for weight in network.trainable_variables:
        weight.assign(random.normal(0, 0.4, weight.shape))
    right = evaluation.predict(dataset, network).scores.argmax(1)
    kept = random.uniform(size=len(right)) < 0.7
    return network, replace(dataset, targets=np.where(kept, right, dataset.targets))


def published(root, network, dataset, name="made"):
    config = make_config(name=name, network=network.config.model_dump())
    folder, _ = publish.publish(network, HISTORY, dataset, config, root, int8=True)
    return bundle.read(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(
    scope="module", params=["label", "classify", "label-both-ways", "no-test-part"]
)
def made(request, root):
    """A published bundle with int8 weights, its data, and the part it is judged on."""
    task = "classify" if request.param == "classify" else "label"
    counts = (15, 60, 0) if request.param == "no-test-part" else (15, 12, 70)
    ways = request.param == "label-both-ways"
    network, dataset = make(task, counts=counts, bidirectional=ways)
    part = "validation" if request.param == "no-test-part" else "test"
    return published(root, network, dataset, request.param), dataset.part(part), part


def session(found, path):
    return onnxruntime.InferenceSession(
        str(found.folder / path), providers=["CPUExecutionProvider"]
    )


def answers(found, path, dataset, batch):
    """Probabilities [M, C] of a part's rows, in batches of sequences of like length,
    computed here from the file."""
    run = session(found, path)
    lengths = np.asarray(dataset.lengths, np.int32)
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    results = {}
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        longest = max(lengths[row] for row in rows)
        frames = np.zeros((len(rows), longest, 3), np.float32)
        for place, row in enumerate(rows):
            frames[place, : lengths[row]] = dataset.sequence(row)
        inputs = {"frames": frames, "lengths": lengths[rows]}
        size = found.metadata.state_size
        if size:
            inputs["state"] = np.zeros((len(rows), size), np.float32)
        given = run.run(["probabilities"], inputs)[0]
        for place, row in enumerate(rows):
            label = dataset.task == "label"
            results[row] = given[place, : lengths[row]] if label else given[place][None]
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


class TestFigures:
    def test_right(self, made):
        """What is told of the int8 network is what its file does on that part: each
        sequence alone, and in batches of 32."""
        found, dataset, part = made
        told = found.metadata.int8
        exact = answers(found, bundle.NETWORK, dataset, 1)
        alone = answers(found, bundle.INT8, dataset, 1)
        mates = answers(found, bundle.INT8, dataset, 32)
        targets = dataset.targets
        close = {"rel": 1e-4, "abs": 1e-6}
        assert told.part == part
        wrong = 100 * (alone.argmax(1) != targets).mean()
        assert told.error == pytest.approx(wrong, **close)
        same = 100 * (alone.argmax(1) == exact.argmax(1)).mean()
        assert told.same_class == pytest.approx(same, **close)
        error = calibration_error(alone, targets)
        assert told.calibration_error == pytest.approx(error, rel=1e-3)
        assert told.largest == pytest.approx(np.abs(alone - exact).max(), **close)
        assert told.mates == pytest.approx(np.abs(mates - alone).max(), **close)
        assert told.largest > 0
        assert told.mates > 0

    def test_bound(self, made):
        """Its bound is twice what it misses the golden answers by, so that it is
        served where it was made."""
        found, _, _ = made
        run = session(found, bundle.INT8)
        stepped = found.metadata.state_size > 0

        def step(frames, lengths, state):
            inputs = {"frames": frames, "lengths": lengths}
            given = run.run(None, inputs | ({"state": state} if stepped else {}))
            return given[0], given[1] if stepped else state

        difference = found.golden().difference(step)
        assert found.metadata.int8.bound == pytest.approx(2 * difference, rel=1e-6)
        assert difference > bundle.TOLERANCE

    def test_exact_network_is_the_same(self, made):
        """The figures of the network itself are not touched."""
        found, dataset, part = made
        exact = answers(found, bundle.NETWORK, dataset, 1)
        wrong = 100 * (exact.argmax(1) != dataset.targets).mean()
        assert found.metadata.training.parts[part].error == pytest.approx(wrong)


class TestFile:
    def test_weights(self, made):
        """Every recurrent layer's weights are int8, in operators that run them so,
        and the file is smaller."""
        found, _, _ = made
        model = onnx.load(str(found.folder / bundle.INT8))
        layers = [n for n in model.graph.node if "LSTM" in n.op_type]
        assert [node.op_type for node in layers] == ["DynamicQuantizeLSTM"] * 2
        kinds = {one.name: one.data_type for one in model.graph.initializer}
        for node in layers:
            assert {kinds[name] for name in node.input[1:3]} == {onnx.TensorProto.INT8}
        sizes = [
            (found.folder / p).stat().st_size for p in (bundle.INT8, bundle.NETWORK)
        ]
        assert sizes[0] < sizes[1]

    def test_listed(self, made):
        """It is one of the bundle's files, held by its digest."""
        found, _, _ = made
        assert bundle.INT8.as_posix() in found.metadata.files

    def test_quiet(self, made, tmp_path, caplog, capfd):
        """Nothing is said that is no concern of the caller's, and the log is left as
        it was."""

        found, _, _ = made
        (tmp_path / bundle.EXTRA).mkdir()
        shutil.copy(found.folder / bundle.NETWORK, tmp_path / bundle.NETWORK)
        filters = logging.getLogger("root").filters[:]
        quantize.write(tmp_path)
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("root").filters == filters
        written = (tmp_path / bundle.INT8).read_bytes()
        assert written == (found.folder / bundle.INT8).read_bytes()


class TestCard:
    def test_section(self, made):
        """The card says how to have it, and each figure beside its bound."""
        found, _, part = made
        card = (found.folder / bundle.REPORT / "card.md").read_text()
        (section,) = (s for s in card.split("\n## ") if s.startswith("int8\n"))
        told, exact = found.metadata.int8, found.metadata.training.parts[part]
        assert "UNROLLED_PRECISION=int8" in section
        assert bundle.INT8.name in section
        assert f"the {part} part" in section
        for figure in (
            f"| {exact.error:.2f} % | {told.error:.2f} % |",
            f"| {exact.calibration_error:.2f} % | {told.calibration_error:.2f} % |",
            f"{told.same_class:.2f} %",
            f"{told.largest:.4f}",
            f"{told.mates:.4f}",
        ):
            assert figure in section

    def test_shown(self, made):
        """So does the table of `inspect`."""
        found, _, part = made
        with console.console.capture() as shown:
            console.console.print(console.bundle_table(found))
        assert f"{part} error {found.metadata.int8.error:.2f} %" in shown.get()

    def test_none(self, root):
        """A bundle without int8 weights says nothing of them."""
        network, dataset = make(counts=(15, 12, 9))
        config = make_config(name="plain", network=network.config.model_dump())
        folder, _ = publish.publish(network, HISTORY, dataset, config, root)
        found = bundle.read(folder)
        assert found.metadata.int8 is None
        assert bundle.INT8.as_posix() not in found.metadata.files
        assert "int8" not in (folder / bundle.REPORT / "card.md").read_text()


def assert_nothing(folder):
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert bundle.find(folder) == []


class TestRefusals:
    @pytest.mark.parametrize("task", ["label", "classify"])
    def test_gru(self, tmp_path, task):
        """A GRU is refused for what is missing, before anything is written."""
        network, dataset = make(task, cell="gru", counts=(15, 12, 9))
        with pytest.raises(QuantizationError, match="no int8 GRU"):
            published(tmp_path, network, dataset)
        assert_nothing(tmp_path)
        with pytest.raises(QuantizationError, match=r"--int8 is for LSTM networks"):
            quantize.check("gru")
        quantize.check("lstm")

    @pytest.mark.parametrize(
        ("bound", "value", "told"),
        [
            ("MAX_ERROR", -100.0, "percentage points of error more"),
            (
                "MAX_CALIBRATION",
                -100.0,
                "percentage points of expected calibration error (ECE) more",
            ),
            ("MAX_CHANGE", 0.0, "change of a probability by batch neighbours"),
        ],
    )
    def test_over_a_bound(self, tmp_path, monkeypatch, bound, value, told):
        """A network that changes more than a bound allows is not published, with and
        without int8 weights, and the figure is told."""
        network, dataset = make(counts=(15, 12, 30))
        monkeypatch.setattr(quantize, bound, value)
        with pytest.raises(QuantizationError, match="nothing was published") as caught:
            published(tmp_path, network, dataset)
        assert told in str(caught.value)
        assert f"(at most {value:g} is allowed)" in str(caught.value)
        assert_nothing(tmp_path)

    def test_really_too_much(self, tmp_path):
        """So it is where 8 bits can't hold the weights: a few that are hundreds of
        times larger than the others, which all matter."""
        network, dataset = make(counts=(15, 12, 30))
        (way,) = network.encoder[0]
        kernel, recurrent, bias = way.get_weights()
        kernel[2] *= 1000  # of a feature that does next to nothing
        dataset = replace(dataset, frames=dataset.frames * [1, 1, 1e-3])
        way.set_weights([kernel, recurrent, bias])
        scale = network.scale.numpy()
        network.scale.assign(scale * [1, 1, 1e-6])
        with pytest.raises(QuantizationError, match="change of a probability"):
            published(tmp_path, network, dataset)
        assert_nothing(tmp_path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A user's file that names no parts."""
    data = make_dataset("label", counts=(60, 0, 0), spread=1.5)
    path = tmp_path_factory.mktemp("data") / "walks.jsonl"
    return write_json_lines(path, data, parts=False)


class TestCommand:
    def run(self, *arguments, code=0):
        result = CliRunner().invoke(command.app, [str(a) for a in arguments])
        shown = result.stdout + result.stderr
        assert result.exit_code == code, shown + repr(result.exception)
        assert "Traceback" not in shown
        return result

    def test_train_and_export(self, file, tmp_path):
        """`train --int8` and `export --int8` write it, and show where it is."""
        places = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        self.run("train", file, "--cell", "lstm", *TINY, "--int8", *places)
        again = tmp_path / "again"
        self.run("export", tmp_path / "r" / "walks", "--int8", "--output", again)
        first, second = (
            bundle.read(folder / "walks" / "1") for folder in (tmp_path / "b", again)
        )
        assert first.metadata.int8 == second.metadata.int8
        assert first.metadata.int8.part == "test"
        shown = self.run("inspect", again).stdout
        assert "int8" in shown
        metrics = json.loads(
            (again / "walks/1" / bundle.REPORT / "metrics.json").read_text()
        )
        assert metrics["parts"]["test"]["error"] >= 0

    def test_without(self, file, tmp_path):
        """Without the flag there is none."""
        places = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        self.run("train", file, "--cell", "lstm", *TINY, *places)
        assert bundle.read(tmp_path / "b" / "walks" / "1").metadata.int8 is None

    def test_gru(self, file, tmp_path):
        """A GRU is refused in one line, before it is trained."""
        places = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        arguments = ("train", file, "--cell", "gru", *TINY, "--int8", *places)
        result = self.run(*arguments, code=2)
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: --int8 is for LSTM networks")
        assert not (tmp_path / "r").exists()
        self.run("train", file, "--cell", "gru", *TINY, *places)
        run = tmp_path / "r" / "walks"
        result = self.run("export", run, "--int8", "--output", tmp_path / "x", code=2)
        assert "GRU" in result.stderr
        assert_nothing(tmp_path / "x")
