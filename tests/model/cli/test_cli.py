"""The commands: what they write, and how they refuse."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from model import __main__ as command
from model import config
from model.bundle import bundle
from model.cli import arguments as choices
from model.cli import console, flags, progress
from model.config import Config, ConfigError
from model.datasets import builtin
from model.training import augmentation, evaluation, loop
from tests.support.networks import make_dataset, write_json_lines

ROOT = Path(__file__).parents[3]
TINY = ("--layers", "1", "--hidden", "4", "--epochs", "2", "--batch", "8")
SECTIONS = ("data", "network", "training", "augmentation")
SETTINGS = [
    (section, name)
    for section in SECTIONS
    for name in type(getattr(Config(), section)).model_fields
]
DRAWN = re.compile("[\u2500-\u257f\x1b]")  # lines of boxes, and ANSI escapes


def run(*arguments, code=0):
    """The result of a command, which ends with this exit code and no traceback."""
    result = CliRunner().invoke(command.app, [str(a) for a in arguments])
    shown = result.stdout + result.stderr
    assert result.exit_code == code, shown + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in shown
    return result


def refusal(*arguments):
    """The one line that a command refuses with."""
    result = run(*arguments, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def data():
    return make_dataset("label", counts=(60, 0, 0), spread=1.5)


@pytest.fixture(scope="module")
def file(folder, data):
    """A user's file that names no parts."""
    return write_json_lines(folder / "Walks of dogs.jsonl", data, parts=False)


@pytest.fixture(scope="module")
def places(folder):
    return ("--output", folder / "bundles", "--runs", folder / "runs")


@pytest.fixture(scope="module")
def trained(file, places):
    """What a training run shows."""
    return run("train", file, "--name", "walks", *TINY, "--seed", 5, *places).stdout


@pytest.fixture(scope="module")
def made(trained, folder):
    """The bundle of that run."""
    return bundle.read(folder / "bundles" / "walks" / "1")


class TestTrain:
    def test_output(self, trained, made):
        """A run tells of each epoch, and ends with the figures and the bundle."""
        lines = [line.strip() for line in trained.splitlines() if line.strip()]
        epochs = [line for line in lines if line.startswith("epoch")]
        assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
        assert lines[-2].split() == ["bundle:", str(made.folder)]
        assert lines[-1].startswith("card:")
        assert Path(lines[-1].split()[1]).is_file()
        (test,) = [line.split() for line in lines if line.startswith("test ")]
        figures = made.metadata.training.parts["test"]
        assert test[1:3] == [str(figures.count), f"{figures.error:.2f}"]

    def test_bundle(self, made, data):
        """The bundle is of the network that the flags asked for."""
        said = made.metadata
        assert (said.task, said.layers, said.hidden) == ("label", 1, 4)
        assert (said.training.seed, said.training.epochs) == (5, 2)
        assert said.training.source == "Walks of dogs"
        assert said.classes == data.classes

    def test_plain(self, trained):
        """Without a terminal there are no boxes and no escapes."""
        assert not DRAWN.search(trained)

    def test_process(self, file, tmp_path):
        """The same as a process of its own: exit code 0, nothing on stderr."""
        places = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        arguments = ("train", file, "--name", "x", *TINY, "--task", "label", *places)
        done = subprocess.run(
            [sys.executable, "-m", "model", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert f"bundle: {tmp_path / 'b' / 'x' / '1'}" in done.stdout
        assert not DRAWN.search(done.stdout)
        bundle.read(tmp_path / "b" / "x" / "1")

    def test_interrupted(self, file, tmp_path, monkeypatch):
        """Ctrl-C says what is kept and how to go on; its weights can be exported."""

        def stop(bars, *_):
            if bars.epoch == 2:
                raise KeyboardInterrupt

        def begins(bars, epoch, batches):
            bars.epoch = epoch

        places = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        with monkeypatch.context() as patch:
            patch.setattr(progress.ProgressBars, "on_batch_end", stop)
            patch.setattr(progress.ProgressBars, "on_epoch_begin", begins)
            result = run("train", file, "--name", "x", *TINY, *places, code=130)
        assert "epoch 1" in result.stderr
        assert "--resume" in result.stderr
        assert not (tmp_path / "b").exists()
        (line,) = [s for s in result.stderr.splitlines() if "unrolled export" in s]
        arguments = line.partition("unrolled ")[2].split()
        assert "bundle: " in run(*arguments).stdout
        record = bundle.read(tmp_path / "b" / "x" / "1").metadata.training
        assert (record.epochs, record.best_epoch) == (1, 1)

    def test_interrupted_at_once(self, file, places, tmp_path, monkeypatch):
        """Ctrl-C before an epoch is done is a line, not a traceback."""

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "fit", stop)
        result = run("train", file, "--runs", tmp_path, code=130)
        assert len(result.stderr.splitlines()) == 1


class TestResume:
    def test_other_settings(self, file, places, made):
        """Other settings are not resumed with."""
        settings = (*TINY, "--seed", 5, "--hidden", 5)
        line = refusal("train", file, "--name", "walks", *settings, "--resume", *places)
        assert "other settings (network.hidden)" in line

    def test_other_data(self, file, places, made):
        """Another seed cuts the file into other parts, which is said."""
        line = refusal(
            "train", file, "--name", "walks", *TINY, "--seed", 6, "--resume", *places
        )
        assert "other data" in line

    def test_finished(self, file, places, made):
        """A finished run is not gone on with; how to have its bundle is said."""
        settings = (*TINY, "--seed", 5)
        line = refusal("train", file, "--name", "walks", *settings, "--resume", *places)
        assert "is complete" in line
        assert "export" in line

    def test_nothing(self, file, tmp_path):
        """Where there is no run, none is resumed."""
        line = refusal("train", file, *TINY, "--resume", "--runs", tmp_path)
        assert "no training run" in line


class TestExport:
    def test_again(self, made, folder, tmp_path):
        """A run's best weights are exported again, anywhere."""
        run("export", folder / "runs" / "walks", "--output", tmp_path)
        again = bundle.read(tmp_path / "walks" / "1")
        np.testing.assert_array_equal(
            again.golden().probabilities, made.golden().probabilities
        )
        assert again.metadata.training == made.metadata.training

    def test_no_run(self, tmp_path):
        """A folder that is no run's is refused by name."""
        assert str(tmp_path) in refusal("export", tmp_path)

    def test_changed_data(self, made, folder, data, file):
        """A run whose data has changed since is not exported."""
        kept = file.read_text()
        try:
            file.write_text(kept.replace("0.", "1.", 1))
            line = refusal("export", folder / "runs" / "walks")
        finally:
            file.write_text(kept)
        assert "data has changed" in line


class TestEvaluate:
    def test_same_test_part(self, made, file):
        """The test part is the one that training left out: the same figures."""
        shown = run("evaluate", made.folder, file, "--json").stdout
        figures = json.loads(shown)
        metrics = made.folder / bundle.REPORT / "metrics.json"
        told = json.loads(metrics.read_text())["parts"]["test"]
        assert figures["count"] == told["count"]
        assert figures["confusion"] == told["confusion"]
        np.testing.assert_allclose(figures["error"], told["error"], atol=1e-3)

    def test_other_file(self, made, tmp_path):
        """No test part is cut from data other than that of the training."""
        path = tmp_path / "other.jsonl"
        line = {"frames": [[1, 2, 3]], "labels": [made.metadata.classes[0]]}
        path.write_text(f"{json.dumps(line)}\n" * 30)
        assert "--part all" in refusal("evaluate", made.folder, path)
        run("evaluate", made.folder, path, "--part", "all")

    def test_all(self, made, file, data):
        """All sequences of a file are judged where that is asked for."""
        result = run("evaluate", made.folder, file, "--part", "all").stdout
        assert not DRAWN.search(result)
        rows = [line.split() for line in result.splitlines()]
        (row,) = [row for row in rows if row[:1] == ["all"]]
        assert row[1] == str(len(data.targets))
        classes = {row[0]: row[1] for row in rows if row[:1] and row[0] in data.classes}
        counts = np.bincount(data.targets)
        want = {name: str(counts[code]) for code, name in enumerate(data.classes)}
        assert classes == want

    def test_by_name(self, made, file, folder):
        """The folder of a bundle's versions, or of one bundle, will do."""
        for path in (made.folder.parent, folder / "bundles"):
            run("evaluate", path, file, "--part", "all", "--json")

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            pytest.param(
                '{"frames": [[1, 2]], "labels": ["ant"]}', "2 features", id="features"
            ),
            pytest.param(
                '{"frames": [[1, 2, 3]], "label": "ant"}', "'label'", id="task"
            ),
            pytest.param(
                '{"frames": [[1, 2, 3]], "labels": ["gnu"]}', "gnu", id="class"
            ),
        ],
    )
    def test_other_data(self, made, tmp_path, text, named):
        """Data that the bundle can't be measured on is refused."""
        path = tmp_path / "other.jsonl"
        path.write_text(text + "\n")
        assert named in refusal("evaluate", made.folder, path, "--part", "all")

    def test_no_bundle(self, file, tmp_path):
        """A folder that holds none, or several, is refused by name."""
        assert f"{tmp_path}: no bundle" in refusal("evaluate", tmp_path, file)
        for name in ("a", "b"):
            (tmp_path / name / "1").mkdir(parents=True)
        line = refusal("inspect", tmp_path)
        assert "several bundles" in line
        assert str(tmp_path / "a") in line


class TestInspect:
    def test_output(self, made):
        """What the bundle is can be read, and that its files are whole."""
        shown = run("inspect", made.folder).stdout
        assert not DRAWN.search(shown)
        for part in ("walks, version 1", "label", "gru 1 x 4", "ant, bee, cat"):
            assert part in shown
        assert made.digest in shown

    def test_spoilt(self, made, folder):
        """A file that was changed is named."""
        path = made.folder / bundle.NETWORK
        kept = path.read_bytes()
        try:
            path.write_bytes(kept + b" ")
            line = refusal("inspect", made.folder)
        finally:
            path.write_bytes(kept)
        assert str(path) in line
        assert "SHA-256" in line


class TestDatasets:
    def test_output(self):
        """The built-in sets and every format of a file are listed."""
        shown = run("datasets").stdout
        assert not DRAWN.search(shown)
        for name in (*builtin.names(), ".jsonl", ".csv", ".parquet", ".npz", ".ts"):
            assert name in shown


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            pytest.param(["--layers", "0"], ["network.layers"], id="low"),
            pytest.param(["--dropout", "1"], ["network.dropout"], id="high"),
            pytest.param(["--name", "A b"], ["name"], id="name"),
            pytest.param(
                ["--epochs", "0", "--batch", "0"],
                ["training.epochs", "training.batch"],
                id="two",
            ),
            pytest.param(["--preset", "vovels"], ["'vovels'", "vowels"], id="preset"),
            pytest.param(
                ["--preset", "vowels", "--settings", "x.toml"],
                ["--preset", "--settings"],
                id="preset-and-settings",
            ),
            pytest.param(["--settings", "no.toml"], ["no.toml"], id="no-settings"),
            pytest.param(["--test", "x.csv"], ["test part of its own"], id="test"),
            pytest.param(["--task", "label"], ["classify", "label"], id="task"),
            pytest.param(["--image", "9", "9"], ["augmentation.image"], id="image"),
        ],
    )
    def test_values(self, arguments, named, tmp_path):
        """A value that can't be is refused in one line that names the setting."""
        line = refusal("train", "vowels", *arguments, "--runs", tmp_path / "runs")
        for name in named:
            assert name in line
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        "name",
        [
            name
            for section, name in SETTINGS
            if type(getattr(Config(), section)).model_fields[name].annotation is float
        ],
    )
    def test_no_number(self, name, tmp_path):
        """No setting takes `nan` for a number."""
        flag = "--" + name.replace("_", "-")
        assert name in refusal("train", "vowels", flag, "nan", "--runs", tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            pytest.param(["train", "x", "--layers", "two"], "--layers", id="no-number"),
            pytest.param(["train", "x", "--cell", "rnn"], "'gru', 'lstm'", id="choice"),
            pytest.param(["train", "x", "--layer", "2"], "--layers", id="flag"),
            pytest.param(["trian"], "train", id="command"),
            pytest.param(["train"], "NAME|FILE", id="no-source"),
        ],
    )
    def test_usage(self, arguments, named):
        """What the command line itself can't be is refused, and what it may be named."""
        assert named in run(*arguments, code=2).stderr

    @pytest.mark.parametrize(
        ("source", "named"),
        [
            pytest.param("vowel", "did you mean 'vowels'?", id="near"),
            pytest.param("nothing.csv", "neither a file nor a built-in", id="far"),
        ],
    )
    def test_source(self, source, named):
        """A source that isn't there is refused, and the nearest named."""
        line = refusal("train", source)
        assert repr(source) in line
        assert named in line

    @pytest.mark.parametrize(
        ("name", "text", "place"),
        [
            pytest.param(
                "a.jsonl",
                '{"frames": [[1]], "label": "a"}\n{"frames": [["x"]], "label": "a"}\n',
                "a.jsonl, line 2: 'x' in 'frames'",
                id="json-lines",
            ),
            pytest.param(
                "a.csv",
                "sequence,label,u\n1,a,0.5\n1,a,oops\n",
                "a.csv, line 3",
                id="csv",
            ),
            pytest.param("a.jsonl", "", "a.jsonl", id="empty"),
            pytest.param("a.txt", "hello", "a.txt", id="no-format"),
            pytest.param("a.npz", "hello", "a.npz", id="no-archive"),
        ],
    )
    def test_file(self, tmp_path, name, text, place):
        """A broken file is refused by its name, the line and what is wrong."""
        path = tmp_path / name
        path.write_text(text)
        assert f"{tmp_path}/{place}" in refusal("train", path)

    def test_too_small(self, tmp_path):
        """A file with too few sequences for all parts is refused."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"frames": [[1]], "label": "a"}\n')
        line = refusal("train", path, "--runs", tmp_path / "runs", *TINY)
        assert "validation" in line
        assert not (tmp_path / "runs").exists()


class Chosen(ConfigError):
    """Ends a command whose settings are all that a test looks at."""


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The settings that `train` with these arguments would train with."""
    found = []

    def fit(dataset, settings, run, **_):
        found.append(settings)
        raise Chosen("stop")

    monkeypatch.setattr(loop, "fit", fit)

    def of(*arguments):
        assert refusal("train", *arguments) == "error: stop"
        return found.pop()

    return of


class TestSettings:
    def test_preset_of_a_built_in_set(self, chosen):
        """A built-in set brings its preset."""
        assert chosen("vowels") == config.load(config.presets()["vowels"])

    def test_flags_override(self, chosen):
        """A flag changes its setting and leaves the preset's others."""
        preset = config.load(config.presets()["vowels"])
        ours = chosen(
            "vowels", "--hidden", 7, "--no-bidirectional", "--noise", 0, "--seed", 9
        )
        assert ours == preset.update(
            {
                "network": {"hidden": 7, "bidirectional": False},
                "training": {"seed": 9},
                "augmentation": {"noise": 0.0},
            }
        )

    def test_another_preset(self, chosen, file):
        """A preset's settings hold for another source, which stays the source."""
        ours = chosen(file, "--preset", "vowels", "--name", "mine")
        preset = config.load(config.presets()["vowels"])
        assert ours.network == preset.network
        assert ours.data.source == str(file)
        assert ours.name == "mine"

    def test_toml(self, chosen, file, tmp_path):
        """A TOML file is a start like a preset, and flags go before it."""
        path = tmp_path / "mine.toml"
        path.write_text('name = "mine"\n[network]\nhidden = 5\ncell = "lstm"\n')
        ours = chosen(file, "--settings", path, "--hidden", 6)
        assert (ours.name, ours.network.hidden, ours.network.cell) == (
            "mine",
            6,
            "lstm",
        )
        assert ours.training == Config().training

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            pytest.param("[network]\nhiden = 5", "network.hiden", id="unknown-key"),
            pytest.param("[netwrk]\nhidden = 5", "netwrk", id="unknown-section"),
            pytest.param("[network]\nhidden = 'x'", "network.hidden", id="no-number"),
            pytest.param("network = 5", "network", id="no-section"),
            pytest.param("[network", "at end of document", id="no-toml"),
            pytest.param("[training]\nepochs = 1.5", "training.epochs", id="fraction"),
        ],
    )
    def test_broken_toml(self, file, tmp_path, text, named):
        """A key at fault is refused by the file's name and its own."""
        path = tmp_path / "mine.toml"
        path.write_text(text)
        line = refusal("train", file, "--settings", path)
        assert f"{path}: " in line
        assert named in line

    @pytest.mark.parametrize(
        ("name", "slug"),
        [
            ("Walks of dogs.jsonl", "walks-of-dogs"),
            ("BasicMotions_TRAIN.ts", "basicmotions"),
            ("a.b_c-1.csv", "a.b_c-1"),
            ("Größe.csv", "gr--e"),
            ("日本.csv", "model"),
            ("....csv", "model"),
            ("x" * 99 + ".csv", "x" * 64),
        ],
    )
    def test_name_of_a_file(self, name, slug):
        """A bundle without a name gets one from its file, which is always allowed."""
        chosen = choices.build_config(f"some/folder/{name}", None, None, None, {})
        assert chosen.name == slug

    @pytest.mark.parametrize("stem", ["a" * 63 + ".x", "-" * 70 + "a", "x" * 63 + "-y"])
    def test_name_is_allowed(self, stem):
        """Whatever a file is called, the name that it gives is allowed."""
        choices.build_config(f"{stem}.csv", None, None, None, {})


class TestFlags:
    @pytest.mark.parametrize(("section", "name"), SETTINGS)
    def test_every_setting(self, section, name):
        """Every setting has a description, and a flag that shows it."""
        text = type(getattr(Config(), section)).model_fields[name].description
        assert text
        assert text.endswith((".", ")."))
        if name == "source":
            return  # the command's argument
        train = typer.main.get_command(command.app).commands["train"]
        (flag,) = [p for p in train.params if p.name == name]
        assert f"--{name.replace('_', '-')}" in flag.opts
        assert text in flag.help
        default = getattr(getattr(Config(), section), name)
        if default is not None:
            assert f"[default: {default}]" in flag.help

    def test_sections(self):
        """No section of the settings is left out."""
        assert {*flags.SECTIONS, "name"} == set(Config.model_fields)
        names = [name for _, name in SETTINGS]
        assert len(set(names)) == len(names), "two settings would share a flag"

    @pytest.mark.parametrize("name", config.presets())
    def test_presets(self, name):
        """Every preset can be read, and fits the set that it names."""
        preset = config.load(config.presets()[name])
        assert preset.name == name
        augmentation.check(preset.augmentation, builtin.load(preset.data.source))

    def test_unknown_change(self):
        """A change of a setting that there isn't is refused by name."""
        with pytest.raises(ConfigError, match=r"network\.hiden"):
            Config().update({"network": {"hiden": 3}})
        with pytest.raises(ConfigError, match="netwrk"):
            Config().update({"netwrk": {"hidden": 3}})


class TestNamesAsText:
    """Names come from files: whatever they hold is shown as it is."""

    @pytest.mark.parametrize("name", ["[red]", "[/b]", ":cat:", "[link=x]y", "a\\[b]"])
    def test_classes(self, name):
        """A class may be named like markup."""
        scores = np.eye(2)
        answers = evaluation.Predictions(scores, np.arange(2), np.ones(2, int))
        figures = evaluation.compute_metrics(answers, (name, "other"))
        with console.console.capture() as shown:
            console.console.print(console.class_table(figures))
            console.console.print(console.metrics_table(f"of {name}", {name: figures}))
        for line in ("of ", "100.00"):
            assert any(line in row and name in row for row in shown.get().splitlines())

    def test_path(self, tmp_path):
        """A path is printed whole, on one line, brackets and all."""
        path = tmp_path / "[bold]" / ("long" * 50) / "1"
        with console.console.capture() as shown:
            console.print_published(path, {})
        assert f"bundle: {path}" in shown.get().splitlines()
