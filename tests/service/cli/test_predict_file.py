"""The command `predict`: tables of answers, by a service and by a bundle."""

import json
import subprocess
import sys

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle.bundle import Bundle
from model.datasets.dataset import TEST
from service.bulk.local_model import LocalModel
from service.cli import predict_file
from service.client import Client
from tests.service.cli.commands import assert_fails, invoke, predict
from tests.support import exports, tables
from tests.support.networks import write_json_lines
from tests.support.processes import environment
from tests.support.servers import CLASSES, ROOT, SECONDS

KINDS = CLASSES["walks"]
UNKNOWN = (
    "how many of them are of its training is not known: if some are, new ones are answered"
    " worse"
)
CLOSE = {"rtol": 0, "atol": 1e-6}


def scores(frame):
    """The probabilities in a table, [rows, C]."""
    names = [name for name in frame if name.startswith("probability_")]
    return frame[names].to_numpy(np.float32)


def right_answers(service, table, model, task="classify"):
    """The probabilities of each sequence of a table, as the client gets them."""
    sequences = tables.sequences_of(table)
    with Client(service) as client:
        method = client.classify if task == "classify" else client.label
        predictions = method([*sequences.values()], model=model).predictions
    rows = (prediction.probabilities for prediction in predictions)
    return dict(zip(sequences, rows, strict=True))


class TestService:
    def test_classify(self, service, table):
        """A row for each sequence: its id, label, probability and true label, and a
        column for each class."""
        table, path = table
        frame, _ = predict(path, "--model", "machines", "--url", service)
        assert list(frame) == [
            *("run", "label", "probability", "true_label"),
            *(f"probability_{name}" for name in KINDS),
        ]
        right = right_answers(service, table, "machines")
        assert frame["run"].tolist() == [*right]
        np.testing.assert_allclose(scores(frame), [*right.values()], **CLOSE)
        best = scores(frame).argmax(1)
        assert frame["label"].tolist() == [KINDS[code] for code in best]
        np.testing.assert_allclose(frame["probability"], scores(frame).max(1))
        labels = table.groupby("run").state.first()
        assert frame["true_label"].tolist() == labels[[*right]].tolist()

    def test_label(self, service, table):
        """A row for each step, with the step column's values."""
        table, path = table
        frame, _ = predict(path, "--model", "moods", "--url", service)
        assert list(frame)[:5] == ["run", "t", "label", "probability", "true_label"]
        ordered = table.sort_values(["run", "t"])
        assert frame["run"].tolist() == ordered["run"].tolist()
        assert frame["t"].tolist() == ordered["t"].tolist()
        right = right_answers(service, table, "moods", "label")
        rows = np.concatenate([*right.values()])
        np.testing.assert_allclose(scores(frame), rows, **CLOSE)

    def test_output(self, service, table, tmp_path):
        """`-o` writes the table to a file of any format, and says so."""
        _, path = table
        command = (path, "--model", "machines", "--url", service)
        printed, _ = predict(*command)
        for name in ("a.csv", "a.jsonl", "a.parquet"):
            result = invoke("predict", *command, "-o", tmp_path / name)
            assert (result.exit_code, result.stdout) == (0, "")
            line = f"{tmp_path / name}: 4 sequences, answers of machines"
            assert result.stderr.splitlines()[0] == line
        frames = [
            pandas.read_csv(tmp_path / "a.csv", dtype={"run": str}),
            pandas.read_json(tmp_path / "a.jsonl", lines=True),
            pandas.read_parquet(tmp_path / "a.parquet"),
        ]
        for frame in frames:
            assert list(frame) == list(printed)
            assert frame["run"].tolist() == printed["run"].tolist()
            np.testing.assert_array_equal(scores(frame), scores(printed))

    def test_many_sequences(self, service, tmp_path):
        """More sequences than a request may have are answered too, in order."""
        table = tables.make_table(lengths=[1 + n % 3 for n in range(300)])
        table.to_csv(tmp_path / "a.csv", index=False)
        frame, _ = predict(tmp_path / "a.csv", "--model", "machines", "--url", service)
        right = right_answers(service, table, "machines")
        assert frame["run"].tolist() == [f"m{n}" for n in range(300)]
        expected = [right[name] for name in frame["run"]]
        np.testing.assert_allclose(scores(frame), expected, **CLOSE)

    def test_standard_input(self, service, table):
        """`-` reads CSV or JSON Lines; errors call it standard input."""
        table, path = table
        command = ("-", "--model", "machines", "--url", service)
        right, _ = predict(path, *command[1:])
        lines = table.to_json(orient="records", lines=True, double_precision=15)
        for text in (table.to_csv(index=False), "\ufeff\n" + lines):
            frame, _ = predict(*command, input=text)
            np.testing.assert_allclose(scores(frame), scores(right), **CLOSE)
        result = invoke("predict", *command, input="run,temp\n")
        assert_fails(
            result, "error: standard input, line 1: feature 'vib x' is missing"
        )

    def test_kept_columns(self, service, table, tmp_path):
        """`--keep` copies columns of the file, in any format: those of each step, or of
        the first step of a sequence."""
        table, _ = table
        table = table.assign(site=[f"s{n}" for n in range(len(table))])
        table = tables.shuffle(table, 0)
        ordered = table.sort_values(["run", "t"])
        for name, write in tables.WRITERS.items():
            write(table, tmp_path / name)
            command = (tmp_path / name, "--url", service, "--keep", "site,vib x")
            frame, _ = predict(*command, "--model", "moods")
            kept = frame.sort_values(["run", "t"])
            assert kept["site"].tolist() == ordered["site"].tolist()
            frame, _ = predict(*command, "--model", "machines")
            first = ordered.groupby("run")["site"].first()
            assert frame["site"].tolist() == first[frame["run"]].tolist()
            assert list(frame)[-2:] == ["site", "vib x"]

    def test_kept_columns_refused(self, service, table, tmp_path):
        """A column that is missing, or that the answers have already, is named."""
        table, path = table
        command = ("--url", service, "--model", "machines", "--keep")
        for name, reason in (
            ("tempp", "column to keep 'tempp' is missing; did you mean 'temp'?"),
            ("run", "--keep run: the answers have a column of that name"),
        ):
            assert_fails(invoke("predict", path, *command, name), reason)
        data = exports.load()["classify-gru"]
        path = write_json_lines(tmp_path / "a.jsonl", data.dataset, parts=False)
        command = ("predict", path, "--bundle", data.folder, "--keep", "site")
        assert_fails(invoke(*command), "--keep needs a table with a row for each step")

    def test_zone(self, service, table, tmp_path):
        """Times keep their zone, as UTC; times without one get none."""
        table, _ = table
        times = [f"2026-01-31T12:00:0{n % 10}" for n in range(len(table))]
        for zone, shown in (("Z", "Z"), ("+00:00", "Z"), ("", "")):
            path = tmp_path / "a.csv"
            table.assign(t=[time + zone for time in times]).to_csv(path, index=False)
            frame, _ = predict(path, "--model", "moods", "--url", service)
            assert frame["t"].tolist() == [time + shown for time in times]

    def test_notes(self, service, table, tmp_path):
        """Columns that the model doesn't take are named, and a table without ids."""
        table, path = table
        _, lines = predict(path, "--model", "machines", "--url", service)
        assert not any("does not use" in line for line in lines)
        path = tmp_path / "more.csv"
        more = table.assign(operator="Ann", site=1).rename(columns={"run": "device"})
        more.drop(columns="t").to_csv(path, index=False)
        command = (path, "--model", "machines", "--url", service)
        for arguments in (command, (path, "--url", service)):  # or of all models
            assert_fails(
                invoke("predict", *arguments),
                "column 'run' is missing, the sequence column in training; found device,",
            )
        command += ("--step-column", "")
        frame, lines = predict(*command, "--sequence-column", "")
        assert len(frame) == 1
        assert lines[:2] == [
            "machines does not use the columns device, operator, site",
            "no column of ids (--sequence-column): 10 rows are one sequence",
        ]
        frame, lines = predict(
            *command, "--sequence-column", "device", "--ignore", "operator, site"
        )
        assert (len(frame), frame.columns[0]) == (4, "device")
        assert not any("does not use" in line for line in lines)


class TestAgreement:
    def test_classes(self, service, table):
        """How many answers agree with the file's labels is printed, also of each class."""
        table, path = table
        frame, lines = predict(path, "--model", "machines", "--url", service)
        right = frame["label"] == frame["true_label"]
        assert lines[0] == f"right: {100 * right.mean():.2f} % of 4 sequences"
        assert lines[1] == UNKNOWN
        assert lines[2].split() == ["class", "sequences", "right", "%"]
        for line, name in zip(lines[3:], KINDS[:2], strict=True):
            share = 100 * right[frame["true_label"] == name].mean()
            assert line.split() == [name, "2", f"{share:.2f}"]

    def test_unknown_labels(self, service, table, tmp_path):
        """Labels that the model lacks are wrong, and named; several are counted apart."""
        table, _ = table
        table.loc[table.run == "m0", "state"] = "leak"
        table.loc[2, "state"] = "sit"
        table.loc[table.run == "m1", "state"] = "crack"
        table.to_csv(tmp_path / "a.csv", index=False)
        command = (tmp_path / "a.csv", "--url", service, "--model")
        frame, lines = predict(*command, "machines")
        assert frame["true_label"].isna().tolist() == [True, False, False, False]
        assert lines[0].endswith(" % of 3 sequences")
        assert lines[1:3] == [
            "of them 1 sequence with labels that the model lacks: crack",
            "no label, or several: 1 sequence",
        ]
        _, lines = predict(*command, "moods")
        assert lines == [
            "right: 0.00 % of 10 steps",
            "of them 10 steps with labels that the model lacks: crack, leak, run, sit",
            UNKNOWN,
        ]

    def test_no_labels(self, service, table, tmp_path):
        """Without labels nothing is printed."""
        table, _ = table
        table.drop(columns="state").to_csv(tmp_path / "a.csv", index=False)
        frame, lines = predict(
            tmp_path / "a.csv", "--url", service, "--model", "machines"
        )
        assert lines == []
        assert "true_label" not in frame


class TestBundle:
    def test_same_answers(self, service, named, table):
        """Without a service the answers are the same, of one bundle or one of several."""
        _, path = table
        for model in ("machines", "moods"):
            right, lines = predict(path, "--url", service, "--model", model)
            for options in (
                ("--bundle", named, "--model", model),
                ("--bundle", named, "--model", f"{model}@1"),
                ("--bundle", named / model),
                ("--bundle", named / model / "1"),
            ):
                frame, notes = predict(path, *options)
                assert notes == lines
                texts = [name for name in ("run", "t", "label") if name in frame]
                assert frame[texts].equals(right[texts])
                np.testing.assert_allclose(scores(frame), scores(right), **CLOSE)

    @pytest.mark.parametrize("kind", ["classify-gru", "label-lstm"])
    def test_training_sequences(self, tmp_path, kind):
        """The bundle knows the sequences that it was trained on: how right the answers
        are is said of the others."""
        exported = exports.load()[kind]
        data, unit = exported.dataset, "sequences" if "classify" in kind else "steps"
        path = write_json_lines(tmp_path / "a.jsonl", data, parts=False)
        frame, lines = predict(path, "--bundle", exported.folder)
        new = data.split == TEST
        new = np.repeat(new, 1 if unit == "sequences" else data.lengths)
        right = (frame["label"] == frame["true_label"]).to_numpy()
        first, second = (100 * right[rows].mean() for rows in (new, ~new))
        assert lines[:2] == [
            f"right: {first:.2f} % of {new.sum()} new {unit}",
            f"used in training: {(~new).sum()} {unit}, {second:.2f} % right",
        ]
        for part, says in (
            ("test", "none of them was used in training"),
            ("train", "all of them were used in training: new ones are answered worse"),
        ):
            write_json_lines(path, data.part(part), parts=False)
            _, lines = predict(path, "--bundle", exported.folder)
            assert f" % of {len(data.part(part).targets)} {unit}" in lines[0]
            assert lines[1] == says

    def test_other_ids(self, named, table, monkeypatch):
        """Rows that are joined by other ids than in training are not called new: that is not
        known."""
        frame, path = table
        hashes = np.zeros((1, 2), np.uint64)
        monkeypatch.setattr(Bundle, "training_hashes", lambda _: hashes)
        options = (path, "--bundle", named / "machines")
        _, notes = predict(*options)
        assert not any("is not known" in note for note in notes)
        frame.rename(columns={"run": "device"}).to_csv(path, index=False)
        _, notes = predict(*options, "--sequence-column", "device")
        assert any("is not known" in note for note in notes)

    def test_blocks(self, monkeypatch, tmp_path):
        """Sequences are encoded a few at a time, which changes no answer."""
        exported, sizes = exports.load()["classify-gru"], []
        path = write_json_lines(tmp_path / "a.jsonl", exported.dataset, parts=False)
        right, lines = predict(path, "--bundle", exported.folder)
        compute = LocalModel.predict

        def count(self, sequences, progress):
            sizes.append(sum(map(len, sequences)))
            return compute(self, sequences, progress)

        monkeypatch.setattr(LocalModel, "predict", count)
        monkeypatch.setattr(predict_file, "BLOCK_STEPS", 20)
        frame, blocks = predict(path, "--bundle", exported.folder)
        assert len(sizes) > 3
        assert max(sizes) < 20 + exported.dataset.lengths.max()
        assert frame["label"].equals(right["label"])
        np.testing.assert_allclose(scores(frame), scores(right), **CLOSE)
        assert blocks == lines

    def test_slim_install(self, named, table, tmp_path):
        """It needs neither TensorFlow nor PyArrow, except for Parquet."""
        _, path = table
        command = ["predict", str(path), "--bundle", str(named), "--model", "machines"]
        script = (
            "import sys\n"
            "for name in ('tensorflow', 'keras', 'onnx', 'pyarrow', 'pandas', 'ray'):\n"
            "    sys.modules[name] = None\n"
            "from service.__main__ import app\n"
            "app(sys.argv[1:])\n"
        )

        def run(*arguments):
            return subprocess.run(
                [sys.executable, "-c", script, *command, *arguments],
                cwd=ROOT,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )

        result = run()
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) == 5
        result = run("-o", str(tmp_path / "a.parquet"))
        assert result.returncode == 1
        assert "Parquet needs the package pyarrow" in result.stderr

    def test_failure(self, named, table, monkeypatch):
        """A sequence that the engine fails on is an error that names it."""
        table, path = table

        def fail(self, sequences, progress):
            return [*sequences[:2], "no finite answer", *sequences[3:]]

        monkeypatch.setattr("service.bulk.local_model.LocalModel.predict", fail)
        result = invoke("predict", path, "--bundle", named / "machines")
        assert_fails(result, f"{path}: sequence 'm2': no finite answer")


# Each example runs seven commands.
@pytest.mark.slow
@settings(max_examples=settings().max_examples // 3)
@given(seed=st.integers(0, 2**16), name=st.sampled_from([*tables.WRITERS]))
def test_any_order(service, named, tmp_path_factory, seed, name):
    """Columns and rows in any order, in any format, give the same answers by `predict`
    with a service and without one, by `classify` and by `label`."""
    table = tables.make_table(seed, labels=KINDS)
    path = tmp_path_factory.mktemp("any") / name
    tables.WRITERS[name](tables.shuffle(table, seed), path)
    for model, task in (("machines", "classify"), ("moods", "label")):
        right = right_answers(service, table, model, task)
        for options in (("--url", service), ("--bundle", named)):
            frame, _ = predict(path, *options, "--model", model)
            for key, rows in frame.groupby("run"):
                expected = np.atleast_2d(right[key])
                np.testing.assert_allclose(scores(rows), expected, **CLOSE)
            assert len(frame) == (3 if task == "classify" else len(table))
        result = invoke(task, path, "--url", service, "--model", model)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert {line["id"] for line in lines} == set(right)
        for line in lines:
            np.testing.assert_allclose(
                line["probabilities"], right[line["id"]], **CLOSE
            )
