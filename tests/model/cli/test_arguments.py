"""The settings of a training run, from flags, files and presets; wrong ones are refused."""

import pytest
import typer

from model import __main__ as command
from model import config
from model.cli.arguments import build_config
from model.config import SECTIONS, Config, ConfigError
from model.datasets import builtin
from model.training import augmentation, defaults
from tests.model.cli.commands import TINY, refusal, run, write_data

SETTINGS = [
    (section, name)
    for section in SECTIONS
    for name in type(getattr(Config(), section)).model_fields
]


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
        assert "too few sequences to validate on" in line
        assert not (tmp_path / "runs").exists()


class Stop(ConfigError):
    """Ends a command once its settings are known."""


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The settings that `train` with these arguments would train with."""
    configs = []

    def resolve(settings, dataset):
        configs.append(settings)
        raise Stop("stop")

    monkeypatch.setattr(defaults, "resolve", resolve)

    def of(*arguments):
        assert refusal("train", *arguments) == "error: stop"
        return configs.pop()

    return of


@pytest.fixture
def file(tmp_path):
    write_data(tmp_path / "walks.jsonl")
    return tmp_path / "walks.jsonl"


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
        for stem in ("a" * 63 + ".x", "-" * 70 + "a", "x" * 63 + "-y"):
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
            if name in config.OPEN or name == "epochs":  # the updates decide
                default = "by the data"
            if default not in (None, ()):
                assert f"[default: {default}]" in flag.help

    def test_sections(self):
        """All sections have options, and no two settings share one."""
        assert {*SECTIONS, "name"} == set(Config.model_fields)
        names = [name for _, name in SETTINGS]
        assert len(set(names)) == len(names), "two settings would share a flag"

    def test_presets(self):
        """Every preset is valid and fits its data set."""
        for name, path in config.presets().items():
            preset = config.load(path)
            if not preset.data.source:  # for any data
                continue
            assert preset.name == name
            augmentation.check(preset.augmentation, builtin.load(preset.data.source))

    def test_unknown_change(self):
        """A change of an unknown setting is refused by name."""
        with pytest.raises(ConfigError, match=r"network\.hiden"):
            Config().update({"network": {"hiden": 3}})
        with pytest.raises(ConfigError, match="netwrk"):
            Config().update({"netwrk": {"hidden": 3}})


def test_preset_for_any_data(chosen, file):
    """The preset `post` takes any data, and a file's bundle has the file's name."""
    settings = chosen(file, "--preset", "post")
    network = settings.network
    assert (network.layers, network.hidden, network.dropout) == (3, 200, 0.5)
    assert (settings.name, settings.data.source) == ("walks", str(file))
    assert not (set(config.OPEN) - {"updates", "folds", "repeats", "prefixes"}) - set(
        network.model_fields_set
        | settings.training.model_fields_set
        | settings.augmentation.model_fields_set
    )
