"""`model.train`: a network from a DataFrame, a file or a built-in set."""

import json
import typing

import numpy as np
import pandas
import polars
import pytest

import model
from model import workflow
from model.bundle import bundle
from model.cli import flags, progress
from model.config import SECTIONS, Config, ConfigError
from model.training import defaults
from tests.model.cli.commands import run

TINY = {"layers": 1, "hidden": 4, "epochs": 2, "batch": 8, "validation_fraction": 0.15}
NAMES = {"by": "machine", "label": "state", "step": "t"}


def make_table(sequences=60, seed=0, **constant):
    """Vibrations of three machines; each machine has its own frequency."""
    rng, parts = np.random.default_rng(seed), []
    for index in range(sequences):
        t = np.arange(rng.integers(4, 9))
        frequency = (0.3, 0.9, 1.7)[index % 3]
        part = pandas.DataFrame({"t": t, "x": np.sin(frequency * t)})
        part["y"] = np.cos(frequency * t) + rng.normal(0, 0.1, len(t))
        part["machine"] = f"m{index:02}"
        part["state"] = ("fan", "mill", "pump")[index % 3]
        parts.append(part.assign(**constant))
    return pandas.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    return {"output": folder / "trained", "runs": folder / "runs"}


def make_rigs():
    """The same table, with the rig that each three machines are on."""
    table = make_table()
    table["rig"] = "rig " + (table["machine"].str[1:].astype(int) // 3).astype(str)
    return table[["y", "t", "rig", "state", "machine", "x"]]


@pytest.fixture(scope="module")
def result(folders):
    """A network trained on a DataFrame of polars with its columns in another order."""
    options = {**NAMES, **TINY, **folders, "group": "rig"}
    table = polars.from_pandas(make_rigs())
    return model.train(table, name="machines", **options, seed=3, progress=False)


@pytest.mark.slow
class TestTrain:
    def test_result(self, result, folders):
        """The result has the bundle, the metrics of its parts, and the history."""
        assert result.bundle == folders["output"] / "machines" / "1"
        metadata = bundle.read(result.bundle).metadata
        assert metadata.training.columns == {
            "sequence": "machine",
            "label": "state",
            "step": "t",
            "group": "rig",
        }
        assert (metadata.hidden, metadata.training.seed) == (4, 3)
        assert set(result.metrics) == {"train", "validation", "test"}
        error = metadata.training.parts["test"].error
        assert result.metrics["test"].error == error
        assert [entry.epoch for entry in result.history] == [1, 2]
        assert result.promotion is None

    def test_network(self, result):
        """The network finds the columns of the data that it was trained on."""
        table = make_table(9, seed=1)
        answer = result.network.classify(table[["x", "state", "machine", "t", "y"]])
        assert answer.ids == [f"m{n:02}" for n in range(9)]
        assert answer.accuracy is not None
        assert result.network is result.network

    def test_equals_the_command(self, result, tmp_path):
        """The command trains the same network on the same table in a file."""
        path = tmp_path / "machines.csv"
        make_rigs().to_csv(path, index=False)
        names = ("--sequence-column", "machine", "--label-column", "state")
        names += ("--group-column", "rig")
        options = [
            item
            for key, n in TINY.items()
            for item in (f"--{key.replace('_', '-')}", n)
        ]
        folders = ("--output", tmp_path, "--runs", tmp_path / "runs", "--seed", 3)
        shown = run("train", path, *names, "--step-column", "t", *options, *folders)
        assert "longest  groups" in shown.stdout
        answers = [
            bundle.read(folder).golden().probabilities
            for folder in (tmp_path / "machines" / "1", result.bundle)
        ]
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-6)

    def test_groups(self, result, tmp_path):
        """Rigs are not divided; the table is evaluated on its test part, and predicted."""
        path = tmp_path / "machines.csv"
        make_rigs().to_csv(path, index=False)
        shown = json.loads(run("evaluate", result.bundle, path, "--json").stdout)
        assert shown["count"] == result.metrics["test"].count
        assert shown["confusion"] == result.metrics["test"].confusion
        assert shown["count"] % 3 == 0
        table = make_rigs()
        assert len(result.network.classify(table).ids) == 60
        table["rig"] = None
        assert len(result.network.classify(table).ids) == 60

    def test_again(self, result, folders, capsys):
        """Another version is compared with the first; progress prints what happens."""
        again = model.train(make_table(), name="machines", **NAMES, **TINY, **folders)
        assert again.bundle.name == "2"
        assert (again.promotion.present, again.promotion.version) == (1, 2)
        printed = capsys.readouterr().out
        for text in ("3 classes", "epoch   2/2", "bundle: ", "machines@2"):
            assert text in printed


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The data and the settings that `model.train` would train with."""
    calls = []

    def resolve(settings, dataset):
        calls.append((dataset, settings))
        raise ConfigError("stop")

    monkeypatch.setattr(defaults, "resolve", resolve)

    def of(*arguments, **options):
        with pytest.raises(ConfigError, match="stop"):
            model.train(*arguments, runs=tmp_path, progress=False, **options)
        return calls.pop()

    return of


class TestArguments:
    def test_choices(self):
        """All settings but those of the data's columns are arguments, of their types."""
        settings = {
            name: info.annotation
            for section in SECTIONS
            for name, info in type(getattr(Config(), section)).model_fields.items()
        }
        columns = {*flags.COLUMNS} - {"encoding", "text", "column"}
        others = {"source", "task", "test"} | columns
        expected = {k: v for k, v in settings.items() if k not in others}
        assert typing.get_type_hints(workflow.Choices) == expected

    def test_sources(self, chosen, tmp_path):
        """A file and a DataFrame give the same data; a built-in set has its preset."""
        path = tmp_path / "Machines_TRAIN.csv"
        make_table().to_csv(path, index=False)
        first, settings = chosen(path, **NAMES)
        assert settings.name == "machines"
        second, settings = chosen(make_table(), **NAMES, test_fraction=0.15)
        assert settings.name == "model"
        assert first.digest == second.digest
        _, settings = chosen("vowels", hidden=7)
        assert (settings.name, settings.network.hidden) == ("vowels", 7)
        assert settings.network.bidirectional

    def test_test_part(self, chosen, tmp_path):
        """Another DataFrame or file is the test part."""
        table, held_out = make_table(), make_table(6, seed=9)
        held_out.to_csv(tmp_path / "test.csv", index=False)
        digests = set()
        for test in (held_out, tmp_path / "test.csv"):
            dataset, _ = chosen(table, test=test, **NAMES)
            assert len(dataset.part("test")) == 6
            digests.add(dataset.digest)
        assert len(digests) == 1

    def test_refused(self, tmp_path):
        """Errors come before anything is trained or written."""
        table, folders = make_table(), {"output": tmp_path, "runs": tmp_path}
        other = table.assign(state="saw")
        for data, options, message in (
            (table, {"layer": 2}, "no argument 'layer'; did you mean 'layers'?"),
            (table, {"layers": 0}, "network.layers: Input should be greater than or"),
            (
                table,
                {"by": "machin"},
                "column 'machin' is missing; did you mean 'machine'",
            ),
            (
                table,
                {"task": "guess"},
                "data.task: Input should be 'classify' or 'label'",
            ),
            (table, {"int8": True}, "int8"),
            (table, {"test": other}, "no sequence for training has the class saw"),
            (7, {}, "data is int; expected a DataFrame, a file or a name"),
            (None, {}, "data is NoneType; expected"),
            ("vowel", {}, "did you mean 'vowels'?"),
        ):
            with pytest.raises((ValueError, TypeError)) as caught:
                model.train(data, **NAMES | options, **folders, progress=False)
            assert message in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_warnings(self, chosen):
        """Likely mistakes in the data are Python's warnings if nothing is printed."""
        with pytest.warns(UserWarning, match="feature never changes in training: z"):
            chosen(make_table(z=1.0), **NAMES)


@pytest.mark.slow
class TestInterrupted:
    def test_resume(self, tmp_path, monkeypatch):
        """Ctrl-C keeps the weights so far, and `resume` goes on with them."""

        def stop(bars, epoch):
            raise KeyboardInterrupt

        folders = {"output": tmp_path / "trained", "runs": tmp_path / "runs"}
        arguments = {**NAMES, **TINY, **folders}
        with monkeypatch.context() as patch:
            patch.setattr(progress.ProgressBars, "on_epoch_end", stop)
            with pytest.raises(workflow.Interrupted) as caught:
                model.train(make_table(), **arguments)
        assert (caught.value.run, caught.value.epoch) == (tmp_path / "runs/model", 1)
        assert "resume=True" in str(caught.value)
        assert not (tmp_path / "trained").exists()
        resumed = model.train(make_table(), **arguments, resume=True)
        assert [entry.epoch for entry in resumed.history] == [1, 2]
