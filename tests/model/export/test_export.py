"""Exported bundles: both formats compute like the network, and any change is noticed."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from model.bundle.golden import Golden
from model.config import Config
from model.export import export, onnx_graph, publish
from model.network import reload
from model.training import evaluation, loop
from model.training.runs import Epoch
from tests.support.bundles import cached
from tests.support.networks import CELLS, make_config, make_dataset

ROOT = Path(__file__).parents[3]
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {
    "classify-gru": ("classify", CELLS["gru"]),
    "classify-gru-original": ("classify", CELLS["gru-original"]),
    "label-lstm": ("label", CELLS["lstm"]),
    "label-lstm-both-ways": ("label", {**CELLS["lstm"], "bidirectional": True}),
}
HISTORY = [
    Epoch(1, 2.0, 60.0, 2.5, 50.0, 0.01, True),
    Epoch(2, 1.0, 40.0, 2.0, 45.0, 0.01, True),
    Epoch(3, 0.5, 20.0, 2.1, 46.0, 0.01, False),
]


@dataclass(frozen=True)
class Exported:
    """An exported bundle, and the network and the data behind it."""

    kind: str
    folder: Path

    @cached_property
    def source(self):
        """The network, the data set and the settings, built anew."""
        network, dataset, config = make_network_and_data(self.kind)
        network.temperature.assign(self.bundle.metadata.temperature)
        return network, dataset, config

    @property
    def dataset(self):
        return self.source[1]

    @property
    def config(self):
        return self.source[2]

    @property
    def bundle(self) -> Bundle:
        return bundle.read(self.folder)

    def expected(self, frames, lengths):
        """The live network's probabilities of whole sequences."""
        network = self.source[0]
        return network.probabilities(network(frames, lengths)).numpy()

    @cached_property
    def steps(self):
        """Both formats as functions, by name."""
        return {
            "SavedModel": reload.saved_model(self.folder),
            "ONNX": reload.onnx(self.folder / bundle.NETWORK),
        }

    def zeros(self, count):
        return np.zeros((count, self.bundle.metadata.state_size), np.float32)

    def frames(self, lengths, seed=0):
        """Random frames about the data's mean, and garbage behind each length."""
        random = np.random.default_rng(seed)
        lengths = np.asarray(lengths, np.int32)
        frames = random.normal(0, 2, (len(lengths), lengths.max(), 3))
        return frames.astype(np.float32), lengths


def make_network_and_data(kind):
    """A network of random weights, and data of which it gets about 70 % right."""
    task, cell = KINDS[kind]
    dataset = make_dataset(task, counts=(15, 12, 9), classes=4)
    config = make_config(
        name=kind, network={"layers": 2, "hidden": 5, "dropout": 0.25, **cell}
    )
    network = loop.build(dataset, config)
    random = np.random.default_rng(7)
    for weight in network.trainable_variables:
        weight.assign(random.normal(0, 0.6, weight.shape))
    predicted = evaluation.predict(dataset, network).scores.argmax(1)
    right = random.uniform(size=len(predicted)) < 0.7
    targets = np.where(right, predicted, dataset.targets)
    return network, replace(dataset, targets=targets), config


def write_exports(root):
    for kind in KINDS:
        network, dataset, config = make_network_and_data(kind)
        publish.publish(network, HISTORY, dataset, config, root)


@pytest.fixture(scope="module")
def exports():
    root = cached("exports", write_exports, Path(__file__))
    return {kind: Exported(kind, root / kind / "1") for kind in KINDS}


@pytest.fixture(params=KINDS)
def exported(request, exports):
    return exports[request.param]


@pytest.fixture
def shared(exports):
    """The bundle that tests of files share."""
    return exports["classify-gru"]


@pytest.fixture
def copy(shared, tmp_path):
    """A copy of that bundle, to be changed."""
    folder = tmp_path / "names" / "1"
    shutil.copytree(shared.folder, folder)
    return folder


def valid(values, lengths):
    """The answers that count, in one row."""
    if values.ndim == 2:
        return values
    return np.concatenate([v[:n] for v, n in zip(values, lengths, strict=True)])


class TestFormats:
    def test_whole(self, exported):
        """Both formats answer as the live network, in batches of any size."""
        random = np.random.default_rng(1)
        for name, step in exported.steps.items():
            for batch in (1, 7, 33):
                frames, lengths = exported.frames(random.integers(1, 20, batch))
                probabilities, _ = step(frames, lengths, exported.zeros(batch))
                np.testing.assert_allclose(
                    valid(probabilities, lengths),
                    valid(exported.expected(frames, lengths), lengths),
                    **CLOSE,
                    err_msg=name,
                )

    def test_probabilities(self, exported):
        """Each answer is a distribution over the classes."""
        frames, lengths = exported.frames([4, 9, 1])
        for step in exported.steps.values():
            rows = valid(step(frames, lengths, exported.zeros(3))[0], lengths)
            assert rows.shape[1] == 4
            assert (rows >= 0).all()
            np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)

    def test_batch_neighbours(self, exported):
        """A sequence's probabilities depend neither on its batch nor on the padding."""
        frames, lengths = exported.frames([5, 12, 1, 8])
        padded_with_nan = np.where(
            np.arange(12)[:, None] < lengths[:, None, None], frames, np.float32(np.nan)
        )
        for step in exported.steps.values():
            together = step(padded_with_nan, lengths, exported.zeros(4))[0]
            for row, length in enumerate(lengths):
                single, _ = step(
                    frames[row : row + 1, :length],
                    lengths[row : row + 1],
                    exported.zeros(1),
                )
                ours = together[row] if together.ndim == 2 else together[row, :length]
                np.testing.assert_allclose(ours, single[0], **CLOSE)

    @pytest.mark.parametrize("kind", [k for k in KINDS if "both-ways" not in k])
    def test_chunks(self, exports, kind):
        """With the state handed on, chunks of any lengths give the whole's answers."""
        exported = exports[kind]
        frames, lengths = exported.frames([9, 14, 6])
        want = exported.expected(frames, lengths)
        for name, step in exported.steps.items():
            state, done = exported.zeros(3), np.zeros(3, int)
            answers = [[] for _ in lengths]
            for sizes in ([2, 1, 3], [4, 8, 1], [3, 5, 2]):
                piece = np.full((3, max(sizes), 3), 5, np.float32)
                for row, size in enumerate(sizes):
                    piece[row, :size] = frames[row, done[row] : done[row] + size]
                chunk, state = step(piece, np.array(sizes, np.int32), state)
                done += sizes
                for row, size in enumerate(sizes):
                    answers[row] += [
                        chunk[row][:size] if chunk.ndim == 3 else chunk[row]
                    ]
            for row, length in enumerate(lengths):
                if want.ndim == 2:
                    ours, theirs = answers[row][-1], want[row]
                else:
                    ours, theirs = np.concatenate(answers[row]), want[row, :length]
                np.testing.assert_allclose(ours, theirs, **CLOSE, err_msg=name)

    def test_states_are_interchangeable(self, exported):
        """Both formats can continue from each other's state."""
        frames, lengths = exported.frames([6, 3])
        states = [
            step(frames, lengths, exported.zeros(2))[1]
            for step in exported.steps.values()
        ]
        assert states[0].shape == (2, exported.config.network.state_size)
        np.testing.assert_allclose(*states, **CLOSE)


class TestSavedModel:
    def test_signatures(self, exported):
        """Names, shapes and types are those that the bundle promises."""
        size = exported.config.network.state_size
        signatures = tf.saved_model.load(str(exported.folder)).signatures
        assert set(signatures) == {"serving_default", *(["step"] if size else [])}
        frames = tf.TensorSpec((None, None, 3), tf.float32, "frames")
        lengths = tf.TensorSpec((None,), tf.int32, "lengths")
        inputs = {"frames": frames, "lengths": lengths}
        whole = signatures["serving_default"]
        assert whole.structured_input_signature[1] == inputs
        label = exported.dataset.task == "label"
        shape = [None, None, 4] if label else [None, 4]
        assert set(whole.structured_outputs) == {"probabilities"}
        assert whole.structured_outputs["probabilities"].shape.as_list() == shape
        if size:
            state = tf.TensorSpec((None, size), tf.float32, "state")
            step = signatures["step"]
            assert step.structured_input_signature[1] == {**inputs, "state": state}
            outputs = step.structured_outputs
            assert set(outputs) == {"probabilities", "state"}
            assert outputs["probabilities"].shape.as_list() == shape
            assert outputs["state"].shape.as_list() == [None, size]

    @pytest.mark.slow
    def test_ten_lines(self, exports, tmp_path):
        """TensorFlow loads and calls a bundle without the project's code."""
        script = """
            import sys
            import numpy as np
            import tensorflow as tf

            data = np.load("inputs.npz")
            answers = {}
            for name in data["folders"]:
                network = tf.saved_model.load(str(name)).signatures["serving_default"]
                answers[str(name)] = network(
                    frames=tf.constant(data["frames"]), lengths=tf.constant(data["lengths"])
                )["probabilities"].numpy()
            np.savez("answers.npz", **{str(i): a for i, a in enumerate(answers.values())})
            assert not [m for m in sys.modules if m.split(".")[0] in ("model", "service")]
        """
        two = [exports[kind] for kind in ("classify-gru", "label-lstm-both-ways")]
        frames, lengths = two[0].frames([3, 7, 1])
        folders = [str(exported.folder) for exported in two]
        np.savez(
            tmp_path / "inputs.npz", frames=frames, lengths=lengths, folders=folders
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(tmp_path / "answers.npz") as answers:
            for index, exported in enumerate(two):
                np.testing.assert_allclose(
                    valid(answers[str(index)], lengths),
                    valid(exported.expected(frames, lengths), lengths),
                    **CLOSE,
                )


class TestOnnx:
    def model(self, exported):
        return onnx.load(str(exported.folder / bundle.NETWORK))

    def test_valid(self, exported):
        """The graph is what ONNX says that a graph is, its shapes included."""
        onnx.checker.check_model(self.model(exported), full_check=True)

    def test_names(self, exported):
        """Inputs and outputs are named as the contract says. (Names of a graph are
        unique, so the state that comes out is `next_state`.)"""
        graph = self.model(exported).graph
        state = ["state"] if exported.config.network.state_size else []
        assert [value.name for value in graph.input] == ["frames", "lengths", *state]
        outputs = ["probabilities", *(f"next_{name}" for name in state)]
        assert [value.name for value in graph.output] == outputs

    def test_fused(self, exported):
        """One fused operator a layer, and no general loop."""
        network = exported.config.network
        kinds = [node.op_type for node in self.model(exported).graph.node]
        assert kinds.count(network.cell.upper()) == network.layers
        assert not {"Loop", "Scan", "If"} & set(kinds)
        ways = {
            attribute.s.decode()
            for node in self.model(exported).graph.node
            for attribute in node.attribute
            if attribute.name == "direction"
        }
        assert ways == {"bidirectional" if network.bidirectional else "forward"}


class TestGolden:
    def test_both_formats(self, exported):
        """Both formats reproduce the golden answers, far within the tolerance."""
        golden = exported.bundle.golden()
        for name, step in exported.steps.items():
            assert golden.difference(step) < bundle.TOLERANCE / 10, name

    def test_from_the_data(self, exported):
        """Golden inputs are sequences of the data, the shortest and the longest too."""
        golden, test = exported.bundle.golden(), exported.dataset.part("test")
        assert golden.lengths.min() == test.lengths.min()
        assert golden.lengths.max() == test.lengths.max()
        known = {test.sequence(row).tobytes() for row in range(len(test))}
        for frames, length in zip(golden.frames, golden.lengths, strict=True):
            assert frames[:length].tobytes() in known

    @pytest.mark.parametrize(
        "place",
        [
            pytest.param(1, id="kernel"),
            pytest.param(2, id="recurrent"),
            pytest.param(3, id="bias"),
        ],
    )
    def test_swapped_gates(self, exported, tmp_path, place):
        """Two gates in each other's place, or one weight off, are noticed."""
        golden = exported.bundle.golden()
        hidden = exported.config.network.hidden
        gates = 4 if exported.config.network.cell == "lstm" else 3

        def swapped(values):
            axis = -1 if place == 3 else 1
            parts = np.split(values, values.shape[axis] // hidden, axis)
            parts[0], parts[gates - 1] = parts[gates - 1], parts[0]
            return np.concatenate(parts, axis)

        def one_off(values):
            values = values.copy()
            values.flat[0] += 0.1
            return values

        for change in (swapped, one_off):
            model = onnx.load(str(exported.folder / bundle.NETWORK))
            node = next(
                node for node in model.graph.node if node.op_type in ("GRU", "LSTM")
            )
            tensor = next(
                t for t in model.graph.initializer if t.name == node.input[place]
            )
            values = change(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            onnx.save(model, str(tmp_path / "other.onnx"))
            difference = golden.difference(reload.onnx(tmp_path / "other.onnx"))
            assert difference > bundle.TOLERANCE, change.__name__

    def test_wrong_answers(self, shared):
        """Wrong probabilities or states are noticed, and so is NaN."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        golden = shared.bundle.golden()
        for change in (
            lambda p, s: (p + 1e-3, s),
            lambda p, s: (p * np.nan, s),
            lambda p, s: (p, s + 1e-2),
            lambda p, s: (p, s * 0),
        ):

            def changed(*inputs, change=change):
                return change(*step(*inputs))

            assert golden.difference(changed) > bundle.TOLERANCE

    def test_state_is_needed(self, shared):
        """An engine that ignores the state that it is given is noticed."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        golden = shared.bundle.golden()
        difference = golden.difference(lambda f, n, s: step(f, n, np.zeros_like(s)))
        assert difference > bundle.TOLERANCE

    def test_rows_depend_on_company(self, shared):
        """An engine whose answers depend on the batch is noticed."""
        step = reload.onnx(shared.folder / bundle.NETWORK)

        def leaking(frames, lengths, state):
            probabilities, state = step(frames, lengths, state)
            return probabilities + 1e-3 * (len(lengths) == 1), state

        assert shared.bundle.golden().difference(leaking) > bundle.TOLERANCE

    def test_sequences_of_one_step(self, shared):
        """Golden sequences that are all of one step can be compared too."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        frames, lengths = shared.frames([1, 1, 1])
        golden = Golden(frames, lengths, *step(frames, lengths, shared.zeros(3)))
        assert golden.difference(step) < bundle.TOLERANCE


class TestMetadata:
    def test_what_was_trained(self, exported):
        """`bundle.json` says what the network is and where it comes from."""
        said = exported.bundle.metadata
        network, data = exported.config.network, exported.dataset
        assert (said.format, said.version) == (1, "1")
        assert (said.name, said.task) == (exported.config.name, data.task)
        assert said.classes == data.classes
        assert said.input.names == data.features
        for key in ("cell", "layers", "hidden", "bidirectional", "dropout"):
            assert getattr(said, key) == getattr(network, key)
        assert said.reset_after == network.reset_after
        assert said.state_size == network.state_size
        train = data.part("train")
        np.testing.assert_allclose(
            said.normalisation.mean, train.frames.mean(0), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            said.normalisation.scale, 1 / train.frames.std(0), rtol=1e-4
        )
        np.testing.assert_allclose(
            said.temperature, exported.source[0].temperature.numpy()
        )
        record = said.training
        assert (record.source, record.data) == ("made", data.digest)
        assert (record.epochs, record.best_epoch) == (3, 2)
        assert record.longest == train.lengths.max()
        assert set(record.parts) == {"train", "validation", "test"}

    def test_errors(self, exported):
        """The errors that it tells are those of the network, part by part."""
        for part, figures in exported.bundle.metadata.training.parts.items():
            data = exported.dataset.part(part)
            frames, lengths = evaluation.pad(
                [data.sequence(r) for r in range(len(data))]
            )
            predicted = valid(exported.expected(frames, lengths), lengths).argmax(1)
            assert figures.count == len(data.targets)
            error = 100 * (predicted != data.targets).mean()
            np.testing.assert_allclose(figures.error, error, atol=1e-4)

    def test_layout(self, exported):
        """The folder holds the files that the contract names, and only those."""
        names = {
            path.relative_to(exported.folder).as_posix()
            for path in exported.folder.rglob("*")
            if path.is_file()
        }
        plots = ("history", "confusion", "reliability", "length")
        report = [*(f"{plot}.png" for plot in plots), "metrics.json", "card.md"]
        assert names == {
            "saved_model.pb",
            "fingerprint.pb",
            "variables/variables.index",
            "variables/variables.data-00000-of-00001",
            "assets.extra/network.onnx",
            "assets.extra/golden.npz",
            *(f"assets.extra/report/{name}" for name in report),
            "assets.extra/bundle.json",
        }
        assert set(exported.bundle.metadata.files) == names - {
            "assets.extra/bundle.json"
        }
        assert exported.folder.stat().st_mode & 0o777 == 0o755

    def test_digest(self, exports):
        """Bundles differ in their digest."""
        digests = {exported.bundle.digest for exported in exports.values()}
        assert len(digests) == len(exports)


def refused(folder):
    with pytest.raises(BundleError) as caught:
        bundle.read(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestRefusals:
    def test_flipped_byte(self, copy):
        """A changed byte in any file is noticed, and the file named."""
        for name in bundle.read(copy).metadata.files:
            path = copy / name
            whole = path.read_bytes()
            for place in {0, len(whole) // 2, len(whole) - 1}:
                spoilt = bytearray(whole)
                spoilt[place] ^= 1
                path.write_bytes(spoilt)
                assert refused(copy).startswith(f"{path}: SHA-256 differs")
            path.write_bytes(whole)
        bundle.read(copy)

    def test_missing(self, copy):
        """A missing file is named, be it any."""
        for name in bundle.read(copy).metadata.files:
            path = copy / name
            path.rename(copy.parent / "away")
            assert refused(copy) == f"{path}: missing file"
            (copy.parent / "away").rename(path)

    def test_renamed(self, copy):
        """A renamed file is named."""
        (copy / bundle.GOLDEN).rename(copy / bundle.EXTRA / "goldem.npz")
        assert "goldem.npz: unexpected file" in refused(copy)

    @pytest.mark.parametrize(
        "name", ["extra", "variables/extra", "assets.extra/report/.hidden"]
    )
    def test_extra(self, copy, name):
        """A file too many is named, wherever it lies."""
        (copy / name).write_bytes(b"")
        assert refused(copy) == f"{copy / name}: unexpected file"

    def test_link(self, copy):
        """A link to somewhere else is a file too many, even one to a folder."""
        (copy / "link").symlink_to(copy.parent)
        assert refused(copy) == f"{copy / 'link'}: unexpected file"

    def test_no_marker(self, copy):
        """A folder without `bundle.json` is no bundle."""
        (copy / bundle.MARKER).unlink()
        assert "no assets.extra/bundle.json" in refused(copy)

    @pytest.mark.parametrize("length", [0, 1, 500, -3])
    def test_truncated(self, copy, length):
        """Half a `bundle.json` is refused by name."""
        path = copy / bundle.MARKER
        path.write_bytes(path.read_bytes()[:length])
        assert refused(copy).startswith(f"{path}: ")

    @pytest.mark.parametrize(
        ("place", "value", "named"),
        [
            pytest.param("colour", "red", "colour", id="unknown-key"),
            pytest.param("training.colour", 1, "training.colour", id="unknown-inner"),
            pytest.param("format", 2, "format", id="unknown-format"),
            pytest.param("format", "1", "format", id="format-as-text"),
            pytest.param("task", "guess", "task", id="task"),
            pytest.param("name", "../up", "name", id="name-with-path"),
            pytest.param("version", "01", "version", id="version"),
            pytest.param("classes", [], "classes", id="no-classes"),
            pytest.param("temperature", 0, "temperature", id="temperature"),
            pytest.param("input.kind", "tokens", "input.kind", id="unknown-input"),
            pytest.param("state_size", 11, "state_size", id="state-size"),
            pytest.param("normalisation.mean", [0], "3 features", id="mean"),
        ],
    )
    def test_key(self, copy, place, value, named):
        """A key that is unknown, or a value that can't be, is refused by name."""
        path = copy / bundle.MARKER
        values = json.loads(path.read_text())
        *outer, last = place.split(".")
        inner = values
        for key in outer:
            inner = inner[key]
        inner[last] = value
        path.write_text(json.dumps(values))
        text = refused(copy)
        assert text.startswith(f"{path}: ")
        assert named in text

    def test_missing_key(self, copy):
        """A `bundle.json` without one of its keys is refused by its name."""
        path = copy / bundle.MARKER
        values = json.loads(path.read_text())
        for key in values.keys() - {"format", "files", "int8"}:
            less = {k: v for k, v in values.items() if k != key}
            path.write_text(json.dumps(less))
            assert f": {key}: " in refused(copy)

    def test_no_folder(self, tmp_path):
        """A folder that doesn't exist is named."""
        assert str(tmp_path / "none") in refused(tmp_path / "none")

    def test_file_as_folder(self, copy):
        """A file in the place of a bundle is refused too."""
        assert str(copy / "saved_model.pb") in refused(copy / "saved_model.pb")


def write(root, name, text="x"):
    with bundle.writing(root, name) as (folder, version):
        (folder / "file").write_text(text)
    return version


class TestWriting:
    def test_versions(self, tmp_path):
        """Each bundle is the next version, counted as numbers: 10 comes after 9."""
        assert [write(tmp_path, "a", str(n)) for n in range(11)] == [
            str(n + 1) for n in range(11)
        ]
        for version in range(1, 12):
            assert (tmp_path / f"a/{version}/file").read_text() == str(version - 1)
        assert write(tmp_path, "b") == "1"
        assert bundle.versions(tmp_path / "a") == list(range(1, 12))

    def test_gap(self, tmp_path):
        """A version that was removed is not given to another bundle again."""
        for _ in range(3):
            write(tmp_path, "a")
        shutil.rmtree(tmp_path / "a" / "2")
        assert write(tmp_path, "a") == "4"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_failure(self, tmp_path, error):
        """A failed export leaves nothing behind and no other version changed."""
        write(tmp_path, "a")

        def fail():
            with bundle.writing(tmp_path, "a") as (folder, _):
                (folder / "half").write_text("x")
                assert bundle.find(tmp_path) == [tmp_path / "a" / "1"]
                raise error

        with pytest.raises(error):
            fail()
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]

    @pytest.mark.slow
    @pytest.mark.parametrize("wrong", ["ONNX", "SavedModel"])
    def test_wrong_export(self, tmp_path, monkeypatch, wrong):
        """A format that answers otherwise than the network is never published."""
        if wrong == "ONNX":
            build = onnx_graph.build

            def broken(network):
                network.head.bias.assign_add([0.5, 0, 0, 0])
                model = build(network)
                network.head.bias.assign_sub([0.5, 0, 0, 0])
                return model

            monkeypatch.setattr(onnx_graph, "build", broken)
        else:
            saved = reload.saved_model

            def forgetful(folder):
                step = saved(folder)
                return lambda f, n, s: step(f, n, np.zeros_like(s))

            monkeypatch.setattr(reload, "saved_model", forgetful)
        network, dataset, config = make_network_and_data("classify-gru")
        with pytest.raises(export.ExportError, match=f"{wrong} differs"):
            publish.publish(network, HISTORY, dataset, config, tmp_path)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        assert bundle.find(tmp_path) == []


class TestFind:
    """`find` with folders that only have a marker."""

    def bundle(self, *parts):
        folder = Path(*parts)
        (folder / "assets.extra").mkdir(parents=True)
        (folder / bundle.MARKER).write_text("{}")
        return folder

    def test_one(self, tmp_path):
        """The folder of a bundle is found."""
        folder = self.bundle(tmp_path, "a", "1")
        assert bundle.find(folder) == [folder]

    def test_versions(self, tmp_path):
        """The newest version has the highest number: 10, not 9."""
        for version in (1, 9, 10):
            self.bundle(tmp_path, "a", str(version))
        assert bundle.find(tmp_path / "a") == [tmp_path / "a" / "10"]
        assert bundle.find(tmp_path) == [tmp_path / "a" / "10"]

    def test_names(self, tmp_path):
        """Every bundle of a folder is found, sorted by name; other files are ignored."""
        for name in ("b", "a", "c"):
            self.bundle(tmp_path, name, "1")
        (tmp_path / "README.md").write_text("")
        (tmp_path / "empty").mkdir()
        (tmp_path / "d" / "latest").mkdir(parents=True)
        (tmp_path / "d" / ".temporary").mkdir()
        (tmp_path / "d" / "01").mkdir()
        (tmp_path / "d" / "2").write_text("a file")
        assert bundle.find(tmp_path) == [tmp_path / n / "1" for n in ("a", "b", "c")]

    def test_unmarked(self, tmp_path):
        """A newest version without its marker is found, so that `read` gives the reason."""
        self.bundle(tmp_path, "a", "1")
        (tmp_path / "a" / "2").mkdir()
        assert bundle.find(tmp_path) == [tmp_path / "a" / "2"]

    def test_nothing(self, tmp_path):
        """Without a bundle or a folder nothing is found."""
        assert bundle.find(tmp_path) == []
        assert bundle.find(tmp_path / "none") == []
        (tmp_path / "file").write_text("")
        assert bundle.find(tmp_path / "file") == []

    def test_number_as_name(self, tmp_path):
        """A bundle whose name is a number doesn't hide others."""
        self.bundle(tmp_path, "letters", "1")
        try:
            Config(name="2024")
        except ValueError:
            return  # no bundle is named so
        self.bundle(tmp_path, "2024", "3")
        assert bundle.find(tmp_path) == [
            tmp_path / "2024" / "3",
            tmp_path / "letters" / "1",
        ]


class TestWithoutTensorFlow:
    def test_imports(self):
        """The bundle, the settings and the data sets import no heavy library."""
        modules = "model.bundle, model.config, model.datasets.builtin"
        heavy = "{'tensorflow', 'keras', 'onnx', 'matplotlib'}"
        code = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout == "set()\n", done.stderr

    def test_reading(self, shared):
        """A bundle is read, verified and compared with its ONNX network without it."""
        script = f"""
            import sys
            from pathlib import Path
            import onnxruntime
            from model import bundle
            exported = bundle.read(bundle.find(Path({str(shared.folder)!r}))[0])
            session = onnxruntime.InferenceSession(str(exported.folder / bundle.NETWORK))
            def step(frames, lengths, state):
                inputs = {{"frames": frames, "lengths": lengths, "state": state}}
                return session.run(None, inputs)
            print(exported.golden().difference(step) < bundle.TOLERANCE)
            assert not {{"tensorflow", "keras", "onnx"}} & sys.modules.keys()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "True\n", done.stderr
