"""A bundle's network in Python, without a service: answers, inputs, errors."""

import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

import model
from model.bundle import bundle, folders, labels, signature
from model.bundle.bundle import BundleError
from model.inference import engine
from tests.support.bundles import VOWELS, copy_bundle
from tests.support.servers import LENGTHS, ROOT, TASKS, native_answers, sequences_of

CLOSE = 1e-6


@pytest.fixture(scope="module")
def networks(bundles):
    """The shared bundles by name."""
    return {name: model.load(bundles / name, threads=2) for name in TASKS}


def answer_of(network, data, **columns):
    """The answer of the method that fits the network's task."""
    return getattr(network, network.task)(data, **columns)


def probabilities(network, data, **columns):
    """The probabilities of each sequence."""
    predictions = answer_of(network, data, **columns).predictions
    return [prediction.probabilities for prediction in predictions]


def assert_close(actual, expected, tolerance=CLOSE):
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def make_table(sequences, features=("x0", "x1", "x2")):
    """A DataFrame of pandas: a row for each step, sequences s0, s1, ..."""
    table = pandas.DataFrame(np.concatenate(sequences), columns=[*features])
    lengths = [len(frames) for frames in sequences]
    table["sequence"] = np.repeat([f"s{n}" for n in range(len(lengths))], lengths)
    return table


class TestAnswers:
    def test_equal_the_service(self, networks, http):
        """The answers are those of the running service, in the same fields."""
        for name, network in networks.items():
            sequences = sequences_of(name)
            expected = native_answers(http, name, sequences)
            assert_close(probabilities(network, sequences), expected)
            answer = answer_of(network, sequences)
            assert (answer.model, answer.version) == (name, "1")
            assert answer.ids == ["1", "2", "3", "4"]
            assert answer.accuracy is None
            for prediction, scores in zip(answer.predictions, expected, strict=True):
                names = np.array(answer.classes)[scores.argmax(-1)]
                if network.task == "label":
                    assert prediction.labels == names.tolist()
                else:
                    assert prediction.label == names
                    assert prediction.probability == scores.max()

    def test_equal_the_golden_answers(self, networks):
        """A network reproduces the answers in its bundle, the shipped ones too."""
        folders = sorted((ROOT / "bundles").glob("*/1"))
        assert len(folders) >= 4
        for folder in folders:
            verified = bundle.read(folder)
            if verified.metadata.input.kind != "frames":
                continue  # they take text
            golden = verified.golden()
            sequences = [
                frames[:length]
                for frames, length in zip(golden.frames, golden.lengths, strict=True)
            ]
            expected = [
                scores[:length] if scores.ndim == 2 else scores
                for scores, length in zip(
                    golden.probabilities, golden.lengths, strict=True
                )
            ]
            assert_close(probabilities(model.load(folder), sequences), expected, 1e-5)

    @given(
        name=st.sampled_from(sorted(TASKS)),
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
        rows=st.integers(1, 4),
        steps=st.integers(4, 50),
    )
    def test_batches_change_nothing(self, networks, name, lengths, rows, steps):
        """A sequence's answer is the same alone and in any batch, whole or in parts."""
        sequences, network = sequences_of(name, lengths), networks[name]
        expected = [probabilities(network, frames)[0] for frames in sequences]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "MAX_ROWS", rows)
            patch.setattr(engine, "MAX_STEPS", steps)
            assert_close(probabilities(network, sequences), expected)

    def test_memory_is_bounded(self, networks, monkeypatch):
        """A forward network takes a long sequence in parts."""
        sizes = []
        network = networks["tags"]
        step = network._engine._step

        def measure(frames, lengths, state):
            sizes.append(frames.shape[0] * frames.shape[1])
            return step(frames, lengths, state)

        monkeypatch.setattr(network._engine, "_step", measure)
        frames = sequences_of("tags", [5 * engine.MAX_STEPS])[0]
        network.label([frames, frames[:7]])
        assert len(sizes) >= 5
        assert max(sizes) <= engine.MAX_STEPS


class TestInputs:
    def test_kinds(self, networks, tmp_path):
        """Arrays, lists, DataFrames and files of the same sequences give the same."""
        sequences = sequences_of("walks")
        table = make_table(sequences)
        mixed = table[["x2", "sequence", "x0", "x1"]].assign(operator="Ann")
        table.to_csv(tmp_path / "table.csv", index=False)
        mixed.to_parquet(tmp_path / "table.parquet")
        network = networks["walks"]
        expected = probabilities(network, sequences)
        for data in (
            tuple(sequences),
            [frames.tolist() for frames in sequences],
            mixed,
            polars.from_pandas(mixed),
            tmp_path / "table.csv",
            str(tmp_path / "table.parquet"),
        ):
            assert_close(probabilities(network, data), expected)
        assert network.classify(mixed).ids == ["s0", "s1", "s2", "s3"]

    def test_one_sequence(self, networks):
        """One sequence is an array, its list, or a DataFrame without ids."""
        frames = sequences_of("tags")[1]
        table = make_table([frames]).drop(columns="sequence")
        expected = probabilities(networks["tags"], [frames])
        for data in (frames, frames.tolist(), frames[None], table[["x1", "x0", "x2"]]):
            assert_close(probabilities(networks["tags"], data), expected)
        assert probabilities(networks["tags"], []) == []

    def test_columns(self, networks):
        """`by`, `step`, `label` and `ignore` name the columns of a DataFrame."""
        sequences = sequences_of("walks")
        table = make_table(sequences).rename(columns={"sequence": "run"})
        table["t"] = np.concatenate([np.arange(n) for n in LENGTHS])
        table["state"], table["note"] = "sit", 1
        network = networks["walks"]
        columns = {"by": "run", "step": "t", "label": "state"}
        answer = network.classify(table.sample(frac=1, random_state=1), **columns)
        order = [f"s{n}" for n in range(4)]
        scores = dict(zip(answer.ids, answer.predictions, strict=True))
        expected = probabilities(network, sequences)
        assert_close([scores[name].probabilities for name in order], expected)
        labels = [scores[name].label for name in order]
        assert answer.accuracy == labels.count("sit") / 4
        unnamed = table.rename(columns={"x0": "a", "x1": "b", "x2": "c"})
        actual = probabilities(network, unnamed, **columns, ignore=["note"])
        assert_close(actual, expected)

    def test_names_from_training(self, bundles, tmp_path):
        """The columns that training named are found without naming them again."""
        record = bundle.read(bundles / "tags" / "1").metadata.training
        columns = {"sequence": "run", "label": "state"}
        training = record.model_copy(update={"columns": columns}).model_dump(
            mode="json"
        )
        folder = copy_bundle(bundles / "tags" / "1", tmp_path / "1", training=training)
        network = model.load(folder)
        table = make_table(sequences_of("tags")).rename(columns={"sequence": "run"})
        answer = network.label(table.assign(state="verb"))
        assert answer.ids == ["s0", "s1", "s2", "s3"]
        labels = [label for p in answer.predictions for label in p.labels]
        assert answer.accuracy == pytest.approx(labels.count("verb") / len(labels))
        assert network.label(table).accuracy is None

    def test_tables_of_answers(self, networks):
        """`to_dict` has the columns of a DataFrame of either library."""
        table = make_table(sequences_of("walks")).assign(label="run")
        answer = networks["walks"].classify(table)
        for library in (pandas, polars):
            frame = library.DataFrame(answer.to_dict())
            assert list(frame["sequence"]) == answer.ids
            assert list(frame["label"]) == [p.label for p in answer.predictions]
            assert set(frame["true_label"]) == {"run"}
        steps = pandas.DataFrame(networks["tags"].label(table).to_dict())
        assert steps["step"].tolist() == [t for n in LENGTHS for t in range(1, n + 1)]

    def test_refused(self, networks, tmp_path):
        """An error says what is wrong, and where."""
        walks, tags = networks["walks"], networks["tags"]
        wide, infinite = np.zeros((2, 4)), np.zeros((3, 3))
        infinite[2, 1] = np.inf
        table = make_table(sequences_of("walks"))
        by = partial(walks.classify, by="runs")
        for call, data, message in (
            (walks.label, [wide], "walks predicts one class for each sequence: call"),
            (tags.classify, [wide], "for each step: call label()"),
            (walks.classify, [wide], "sequence 0 has 4 features; walks takes 3"),
            (walks.classify, [wide[:, :3], infinite], "sequence 1, step 2, feature 1"),
            (walks.classify, [1.0, 2.0], "sequence 0 has the shape []; a sequence is"),
            (walks.classify, np.zeros(3), "an array of shape [3]; a sequence is an"),
            (walks.classify, np.zeros((0, 3)), "sequence 0 has the shape [0, 3]"),
            (walks.classify, [[[1, 2, 3], [4]]], "rows of different lengths"),
            (walks.classify, [[["a", "b", "c"]]], "holds <U1, no numbers"),
            (walks.classify, {"x": 1}, "the data holds dict, no numbers"),
            (walks.classify, [table], "sequence 0 is a DataFrame: join"),
            (walks.classify, [wide[:, :3], table], "sequence 1 is a DataFrame: join"),
            (walks.classify, tmp_path / "no.csv", "no.csv: No such file"),
            (by, [wide], "only a file or a DataFrame has"),
            (by, table, "sequence column 'runs' is missing"),
        ):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                call(data)
            assert message in str(caught.value)


class TestLoad:
    def test_describes_itself(self, networks):
        """A network tells its task, features and classes."""
        network = networks["both"]
        assert repr(network) == (
            "<Network both@1: label, 3 features, 3 classes, lstm 1 x 4, both directions>"
        )
        assert network.features == ["x0", "x1", "x2"]
        assert network.classes == ("down", "flat", "up")
        assert (network.name, network.version) == ("both", "1")
        assert len(network.digest) == 64

    def test_versions(self, bundles, tmp_path):
        """Of a folder of versions the newest is loaded, or the one that is named."""
        for version in ("1", "3", "12"):
            copy_bundle(
                bundles / "walks" / "1", tmp_path / "walks" / version, version=version
            )
        folder = tmp_path / "walks"
        for path, version, loaded in (
            (folder, None, "12"),
            (folder, 3, "3"),
            (folder, "1", "1"),
            (tmp_path, None, "12"),
            (folder / "3", None, "3"),
            (folder / "3", 3, "3"),
        ):
            assert model.load(path, version=version).version == loaded
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(BundleError, match="empty: no bundle"):
            model.load(empty)
        labels.promote([folder], 3)
        labels.promote([folder], 1, "old")
        assert model.load(folder).version == "3"
        assert model.load(folder, version="old").version == "1"
        with pytest.raises(BundleError, match="no version new; there are 1, 3, 12"):
            model.load(folder, version="new")
        copy_bundle(bundles / "tags" / "1", tmp_path / "tags" / "1")
        for path, version, message in (
            (folder, 2, "walks: no version 2; there are 1, 3, 12"),
            (folder / "3", 2, "3: holds version 3"),
            (tmp_path, None, "several bundles: "),
            (tmp_path / "none", None, "none: no such folder, and no bundle's name"),
            (
                "vowel",
                None,
                "vowel: no such folder, and no bundle's name; did you mean",
            ),
        ):
            with pytest.raises(BundleError) as caught:
                model.load(path, version=version)
            assert message in str(caught.value)

    def test_names(self, bundles, tmp_path, monkeypatch):
        """A bundle is found by its name in the folders that are served by default."""
        monkeypatch.chdir(tmp_path)
        assert model.load("vowels").version == "1"
        copy_bundle(VOWELS, tmp_path / "trained/vowels/2", version="2")
        assert model.load("vowels").version == "2"
        labels.promote(folders.of_name("vowels", folders.TRAINED), 1)
        assert model.load("vowels").version == "1"
        assert model.load("vowels", version=2).version == "2"
        # As in the service: the newest of those that are served.
        assert model.load("vowels", version="latest").version == "1"
        with pytest.raises(BundleError, match="default version 1 is not here"):
            model.load("trained/vowels")  # 2 is not promoted
        assert model.load("trained/vowels", version=2).version == "2"

    def test_checks(self, bundles, tmp_path):
        """A changed file, a missing signature and other answers are refused."""
        folder = shutil.copytree(bundles / "walks" / "1", tmp_path / "1")
        private = tmp_path / "key.pem"
        public = signature.generate(private)
        with pytest.raises(BundleError, match="not signed"):
            model.load(folder, keys=public)
        text = (folder / bundle.MARKER).read_bytes()
        (folder / bundle.SIGNATURE).write_bytes(signature.sign(text, private))
        assert model.load(folder, keys=public).version == "1"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "TOLERANCE", -1.0)
            with pytest.raises(BundleError, match="misses the golden answers by"):
                model.load(folder)
            patch.setattr(engine.onnx_step, "load", object)
            with pytest.raises(BundleError, match="1: TypeError: object"):
                model.load(folder)
        with (folder / bundle.NETWORK).open("ab") as file:
            file.write(b"!")
        with pytest.raises(BundleError, match=r"network\.onnx: SHA-256 differs"):
            model.load(folder)
        with pytest.raises(ValueError, match="threads is 0"):
            model.load(VOWELS, threads=0)

    def test_threads(self):
        """Any number of threads gives the same answers."""
        rng = np.random.default_rng(0)
        sequences = [rng.normal(size=(n % 30 + 1, 12)) for n in range(200)]
        answers = [
            probabilities(model.load(VOWELS, threads=threads), sequences)
            for threads in (1, 4)
        ]
        assert_close(*answers)

    def test_light_imports(self):
        """Neither `import model` nor a prediction loads TensorFlow or the service."""
        script = (
            "import sys, model\n"
            "print(*sys.modules)\n"
            f"model.load({str(VOWELS)!r}).classify([[[0.0] * 12]])\n"
            "print(*sys.modules)\n"
            "print(*dir(model))\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        lines = [set(line.split()) for line in run.stdout.splitlines()]
        light, loaded, names = lines
        assert not light & {"numpy", "pydantic", "onnxruntime"}
        assert "onnxruntime" in loaded
        others = {"tensorflow", "keras", "onnx", "service", "pandas", "polars", "typer"}
        assert not loaded & others
        assert {"load", "Network"} <= names
        with pytest.raises(AttributeError, match="no attribute 'lode'"):
            model.lode  # noqa: B018
