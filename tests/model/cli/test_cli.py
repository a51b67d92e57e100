"""The training commands: their results and their error messages."""

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
from model.cli import console, flags, progress
from model.cli.arguments import build_config
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
    """Run a command, and check its exit code; it must not print a traceback."""
    result = CliRunner().invoke(command.app, [str(a) for a in arguments])
    output = result.stdout + result.stderr
    assert result.exit_code == code, output + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in output
    return result


def refusal(*arguments):
    """The error message of a command: one line."""
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
def folders(folder):
    return ("--output", folder / "bundles", "--runs", folder / "runs")


@pytest.fixture(scope="module")
def trained(file, folders):
    """The output of a training run."""
    return run("train", file, "--name", "walks", *TINY, "--seed", 5, *folders).stdout


@pytest.fixture(scope="module")
def exported(trained, folder):
    """The bundle of that run."""
    return bundle.read(folder / "bundles" / "walks" / "1")


class TestTrain:
    def test_output(self, trained, exported):
        """A run prints a line for each epoch, the metrics, and the bundle's folder."""
        lines = [line.strip() for line in trained.splitlines() if line.strip()]
        epochs = [line for line in lines if line.startswith("epoch")]
        assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
        assert lines[-2].split() == ["bundle:", str(exported.folder)]
        assert lines[-1].startswith("card:")
        assert Path(lines[-1].split()[1]).is_file()
        (test,) = [line.split() for line in lines if line.startswith("test ")]
        part_metrics = exported.metadata.training.parts["test"]
        assert test[1:3] == [str(part_metrics.count), f"{part_metrics.error:.2f}"]

    def test_bundle(self, exported, data):
        """The bundle holds the network that the options describe."""
        metadata = exported.metadata
        assert (metadata.task, metadata.layers, metadata.hidden) == ("label", 1, 4)
        assert (metadata.training.seed, metadata.training.epochs) == (5, 2)
        assert metadata.training.source == "Walks of dogs"
        assert metadata.classes == data.classes

    def test_plain(self, trained):
        """Without a terminal there are no boxes and no escapes."""
        assert not DRAWN.search(trained)

    @pytest.mark.slow
    def test_process(self, file, tmp_path):
        """As a process it exits with 0 and writes nothing to stderr."""
        folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        arguments = ("train", file, "--name", "x", *TINY, "--task", "label", *folders)
        process = subprocess.run(
            [sys.executable, "-m", "model", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        assert f"bundle: {tmp_path / 'b' / 'x' / '1'}" in process.stdout
        assert not DRAWN.search(process.stdout)
        bundle.read(tmp_path / "b" / "x" / "1")

    @pytest.mark.slow
    def test_interrupted(self, file, tmp_path, monkeypatch):
        """Ctrl-C prints how to resume or export the run, and the command works."""

        def stop(bars, *_):
            if bars.epoch == 2:
                raise KeyboardInterrupt

        def begins(bars, epoch, batches):
            bars.epoch = epoch

        folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
        with monkeypatch.context() as patch:
            patch.setattr(progress.ProgressBars, "on_batch_end", stop)
            patch.setattr(progress.ProgressBars, "on_epoch_begin", begins)
            result = run("train", file, "--name", "x", *TINY, *folders, code=130)
        assert "epoch 1" in result.stderr
        assert "--resume" in result.stderr
        assert not (tmp_path / "b").exists()
        (line,) = [s for s in result.stderr.splitlines() if "unrolled export" in s]
        arguments = line.partition("unrolled ")[2].split()
        assert "bundle: " in run(*arguments).stdout
        record = bundle.read(tmp_path / "b" / "x" / "1").metadata.training
        assert (record.epochs, record.best_epoch) == (1, 1)

    def test_interrupted_at_once(self, file, folders, tmp_path, monkeypatch):
        """Ctrl-C before the first epoch is complete prints one line."""

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "fit", stop)
        result = run("train", file, "--runs", tmp_path, code=130)
        assert len(result.stderr.splitlines()) == 1


class TestResume:
    def test_other_settings(self, file, folders, exported):
        """A run is not resumed with other settings."""
        settings = (*TINY, "--seed", 5, "--hidden", 5)
        line = refusal(
            "train", file, "--name", "walks", *settings, "--resume", *folders
        )
        assert "other settings (network.hidden)" in line

    def test_other_data(self, file, folders, exported):
        """Another seed splits the file differently, which is other data."""
        line = refusal(
            "train", file, "--name", "walks", *TINY, "--seed", 6, "--resume", *folders
        )
        assert "other data" in line

    def test_finished(self, file, folders, exported):
        """A complete run is not resumed; the message has the export command."""
        settings = (*TINY, "--seed", 5)
        line = refusal(
            "train", file, "--name", "walks", *settings, "--resume", *folders
        )
        assert "is complete" in line
        assert "export" in line

    def test_nothing(self, file, tmp_path):
        """Without a run nothing is resumed."""
        line = refusal("train", file, *TINY, "--resume", "--runs", tmp_path)
        assert "no training run" in line


class TestExport:
    @pytest.mark.slow
    def test_again(self, exported, folder, tmp_path):
        """The best weights of a run can be exported again."""
        run("export", folder / "runs" / "walks", "--output", tmp_path)
        again = bundle.read(tmp_path / "walks" / "1")
        np.testing.assert_array_equal(
            again.golden().probabilities, exported.golden().probabilities
        )
        assert again.metadata.training == exported.metadata.training

    def test_no_run(self, tmp_path):
        """A folder that is not a run is refused by name."""
        assert str(tmp_path) in refusal("export", tmp_path)

    def test_changed_data(self, exported, folder, data, file):
        """A run whose data has changed is not exported."""
        original = file.read_text()
        try:
            file.write_text(original.replace("0.", "1.", 1))
            line = refusal("export", folder / "runs" / "walks")
        finally:
            file.write_text(original)
        assert "data has changed" in line


class TestEvaluate:
    def test_same_test_part(self, exported, file):
        """Evaluation uses the test part of training, with the same metrics."""
        output = run("evaluate", exported.folder, file, "--json").stdout
        part_metrics = json.loads(output)
        metrics = exported.folder / bundle.REPORT / "metrics.json"
        recorded = json.loads(metrics.read_text())["parts"]["test"]
        assert part_metrics["count"] == recorded["count"]
        assert part_metrics["confusion"] == recorded["confusion"]
        np.testing.assert_allclose(part_metrics["error"], recorded["error"], atol=1e-3)

    def test_other_file(self, exported, tmp_path):
        """Other data than the training data is not split."""
        path = tmp_path / "other.jsonl"
        line = {"frames": [[1, 2, 3]], "labels": [exported.metadata.classes[0]]}
        path.write_text(f"{json.dumps(line)}\n" * 30)
        assert "--part all" in refusal("evaluate", exported.folder, path)
        run("evaluate", exported.folder, path, "--part", "all")

    def test_all(self, exported, file, data):
        """`--part all` evaluates all sequences of a file."""
        result = run("evaluate", exported.folder, file, "--part", "all").stdout
        assert not DRAWN.search(result)
        rows = [line.split() for line in result.splitlines()]
        (row,) = [row for row in rows if row[:1] == ["all"]]
        assert row[1] == str(len(data.targets))
        classes = {row[0]: row[1] for row in rows if row[:1] and row[0] in data.classes}
        counts = np.bincount(data.targets)
        want = {name: str(counts[code]) for code, name in enumerate(data.classes)}
        assert classes == want

    def test_by_name(self, exported, file, folder):
        """The folder of a bundle's versions is accepted too."""
        for path in (exported.folder.parent, folder / "bundles"):
            run("evaluate", path, file, "--part", "all", "--json")

    def test_other_data(self, exported, tmp_path):
        """Data that doesn't fit the bundle is refused."""
        for text, expected in (
            ('{"frames": [[1, 2]], "labels": ["ant"]}', "2 features"),
            ('{"frames": [[1, 2, 3]], "label": "ant"}', "'label'"),
            ('{"frames": [[1, 2, 3]], "labels": ["gnu"]}', "gnu"),
        ):
            path = tmp_path / "other.jsonl"
            path.write_text(text + "\n")
            assert expected in refusal(
                "evaluate", exported.folder, path, "--part", "all"
            )

    def test_no_bundle(self, file, tmp_path):
        """A folder without a bundle, or with several, is refused by name."""
        assert f"{tmp_path}: no bundle" in refusal("evaluate", tmp_path, file)
        for name in ("a", "b"):
            (tmp_path / name / "1").mkdir(parents=True)
        line = refusal("inspect", tmp_path)
        assert "several bundles" in line
        assert str(tmp_path / "a") in line


class TestInspect:
    def test_output(self, exported):
        """`inspect` shows the network, its classes and the digest."""
        output = run("inspect", exported.folder).stdout
        assert not DRAWN.search(output)
        for part in ("walks, version 1", "label", "gru 1 x 4", "ant, bee, cat"):
            assert part in output
        assert exported.digest in output

    def test_spoilt(self, exported, folder):
        """A changed file is named."""
        path = exported.folder / bundle.NETWORK
        original = path.read_bytes()
        try:
            path.write_bytes(original + b" ")
            line = refusal("inspect", exported.folder)
        finally:
            path.write_bytes(original)
        assert str(path) in line
        assert "SHA-256" in line


class TestDatasets:
    def test_output(self):
        """The built-in sets and all file formats are listed."""
        output = run("datasets").stdout
        assert not DRAWN.search(output)
        for name in (*builtin.BUILTIN, ".jsonl", ".csv", ".parquet", ".npz", ".ts"):
            assert name in output


class TestRefusals:
    def test_values(self, tmp_path):
        """An invalid value is refused in one line that names the setting."""
        for arguments, expected in (
            (["--layers", "0"], ["network.layers"]),
            (["--dropout", "1"], ["network.dropout"]),
            (["--name", "A b"], ["name"]),
            (["--epochs", "0", "--batch", "0"], ["training.epochs", "training.batch"]),
            (["--preset", "vovels"], ["'vovels'", "vowels"]),
            (
                ["--preset", "vowels", "--settings", "x.toml"],
                ["--preset", "--settings"],
            ),
            (["--settings", "no.toml"], ["no.toml"]),
            (["--test", "x.csv"], ["test part of its own"]),
            (["--task", "label"], ["classify", "label"]),
            (["--image", "9", "9"], ["augmentation.image"]),
        ):
            line = refusal("train", "vowels", *arguments, "--runs", tmp_path / "runs")
            for name in expected:
                assert name in line
            assert not (tmp_path / "runs").exists()

    def test_nan(self, tmp_path):
        """No setting accepts `nan`."""
        for section, name in SETTINGS:
            fields = type(getattr(Config(), section)).model_fields
            if fields[name].annotation is float:
                arguments = ("--" + name.replace("_", "-"), "nan", "--runs", tmp_path)
                assert name in refusal("train", "vowels", *arguments)

    def test_usage(self):
        """A wrong command or option is refused, and the right one suggested."""
        for arguments, expected in (
            (["train", "x", "--layers", "two"], "--layers"),
            (["train", "x", "--cell", "rnn"], "'gru', 'lstm'"),
            (["train", "x", "--layer", "2"], "--layers"),
            (["trian"], "train"),
            (["train"], "NAME|FILE"),
        ):
            assert expected in run(*arguments, code=2).stderr

    def test_source(self):
        """An unknown source is refused, and the nearest name suggested."""
        for source, expected in (
            ("vowel", "did you mean 'vowels'?"),
            ("nothing.csv", "neither a file nor a built-in"),
        ):
            line = refusal("train", source)
            assert repr(source) in line
            assert expected in line

    def test_file(self, tmp_path):
        """A broken file is refused with its name, the line and the reason."""
        for name, text, place in (
            (
                "a.jsonl",
                '{"frames": [[1]], "label": "a"}\n{"frames": [["x"]], "label": "a"}\n',
                "a.jsonl, line 2: 'x' in 'frames'",
            ),
            ("a.csv", "sequence,label,u\n1,a,0.5\n1,a,oops\n", "a.csv, line 3"),
            ("a.jsonl", "", "a.jsonl"),
            ("a.txt", "hello", "a.txt"),
            ("a.npz", "hello", "a.npz"),
        ):
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


class Stop(ConfigError):
    """Ends a command once its settings are known."""


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The settings that `train` with these arguments would train with."""
    configs = []

    def fit(dataset, settings, run, **_):
        configs.append(settings)
        raise Stop("stop")

    monkeypatch.setattr(loop, "fit", fit)

    def of(*arguments):
        assert refusal("train", *arguments) == "error: stop"
        return configs.pop()

    return of


class TestSettings:
    def test_preset_of_a_built_in_set(self, chosen):
        """A built-in set uses its preset."""
        assert chosen("vowels") == config.load(config.presets()["vowels"])

    def test_flags_override(self, chosen):
        """An option overrides its setting and no other."""
        preset = config.load(config.presets()["vowels"])
        settings = chosen(
            "vowels", "--hidden", 7, "--no-bidirectional", "--noise", 0, "--seed", 9
        )
        assert settings == preset.update(
            {
                "network": {"hidden": 7, "bidirectional": False},
                "training": {"seed": 9},
                "augmentation": {"noise": 0.0},
            }
        )

    def test_another_preset(self, chosen, file):
        """A preset's settings can be used with another source."""
        settings = chosen(file, "--preset", "vowels", "--name", "mine")
        preset = config.load(config.presets()["vowels"])
        assert settings.network == preset.network
        assert settings.data.source == str(file)
        assert settings.name == "mine"

    def test_toml(self, chosen, file, tmp_path):
        """A TOML file works like a preset; options override it."""
        path = tmp_path / "mine.toml"
        path.write_text('name = "mine"\n[network]\nhidden = 5\ncell = "lstm"\n')
        settings = chosen(file, "--settings", path, "--hidden", 6)
        assert (settings.name, settings.network.hidden, settings.network.cell) == (
            "mine",
            6,
            "lstm",
        )
        assert settings.training == Config().training

    def test_broken_toml(self, file, tmp_path):
        """An invalid key is refused; the message names the file and the key."""
        for text, expected in (
            ("[network]\nhiden = 5", "network.hiden"),
            ("[netwrk]\nhidden = 5", "netwrk"),
            ("[network]\nhidden = 'x'", "network.hidden"),
            ("network = 5", "network"),
            ("[network", "at end of document"),
            ("[training]\nepochs = 1.5", "training.epochs"),
        ):
            path = tmp_path / "mine.toml"
            path.write_text(text)
            line = refusal("train", file, "--settings", path)
            assert f"{path}: " in line
            assert expected in line

    def test_bundle_name(self):
        """Without a name the bundle is expected after its file."""
        for name, expected in (
            ("Walks of dogs.jsonl", "walks-of-dogs"),
            ("BasicMotions_TRAIN.ts", "basicmotions"),
            ("a.b_c-1.csv", "a.b_c-1"),
            ("Größe.csv", "gr--e"),
            ("日本.csv", "model"),
            ("....csv", "model"),
            ("x" * 99 + ".csv", "x" * 64),
        ):
            config = build_config(f"some/folder/{name}", None, None, None, {})
            assert config.name == expected

    def test_name_is_allowed(self):
        """The name of any file gives a valid bundle name."""
        for stem in (
            "a" * 63 + ".x",
            "-" * 70 + "a",
            "x" * 63 + "-y",
        ):
            build_config(f"{stem}.csv", None, None, None, {})


class TestFlags:
    def test_every_setting(self):
        """Every setting has a description, and an option whose help shows it."""
        train = typer.main.get_command(command.app).commands["train"]
        for section, name in SETTINGS:
            text = type(getattr(Config(), section)).model_fields[name].description
            assert text.endswith((".", ").")), name
            if name == "source":
                continue  # the command's argument
            (flag,) = [p for p in train.params if p.name == name]
            assert f"--{name.replace('_', '-')}" in flag.opts
            assert text in flag.help
            default = getattr(getattr(Config(), section), name)
            if default is not None:
                assert f"[default: {default}]" in flag.help

    def test_sections(self):
        """All sections have options, and no two settings share one."""
        assert {*flags.SECTIONS, "name"} == set(Config.model_fields)
        names = [name for _, name in SETTINGS]
        assert len(set(names)) == len(names), "two settings would share a flag"

    def test_presets(self):
        """Every preset is valid and fits its data set."""
        for name, path in config.presets().items():
            preset = config.load(path)
            assert preset.name == name
            augmentation.check(preset.augmentation, builtin.load(preset.data.source))

    def test_unknown_change(self):
        """A change of an unknown setting is refused by name."""
        with pytest.raises(ConfigError, match=r"network\.hiden"):
            Config().update({"network": {"hiden": 3}})
        with pytest.raises(ConfigError, match="netwrk"):
            Config().update({"netwrk": {"hidden": 3}})


class TestNamesAsText:
    """Names from files are printed as they are."""

    def test_classes(self):
        """A class's name is not read as markup."""
        for name in (
            "[red]",
            "[/b]",
            ":cat:",
            "[link=x]y",
            "a\\[b]",
        ):
            scores = np.eye(2)
            predictions = evaluation.Predictions(scores, np.arange(2), np.ones(2, int))
            part_metrics = evaluation.compute_metrics(predictions, (name, "other"))
            with console.console.capture() as output:
                console.console.print(console.class_table(part_metrics))
                console.console.print(
                    console.metrics_table(f"of {name}", {name: part_metrics})
                )
            for line in ("of ", "100.00"):
                assert any(
                    line in row and name in row for row in output.get().splitlines()
                )

    def test_path(self, tmp_path):
        """A long path with brackets is printed on one line."""
        path = tmp_path / "[bold]" / ("long" * 50) / "1"
        with console.console.capture() as output:
            console.print_published(path, {})
        assert f"bundle: {path}" in output.get().splitlines()
