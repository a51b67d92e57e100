"""The command `unrolled search`, and `unrolled train --search`."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import model
from model.bundle import bundle
from model.cli import console, flags, libraries
from model.config import Config
from model.search import study, trials
from model.search.trials import Outcome
from model.training import workers
from tests.model.cli.commands import refusal, run
from tests.support.bundles import ROOT
from tests.support.networks import make_dataset, write_json_lines

# A network that trains in no time; only the learning rate and the cell are searched.
TINY = {
    **{"layers": 1, "hidden": 4, "dropout": 0, "read": "last", "stack": 1},
    **{"updates": 6, "batch": 8, "folds": 3, "repeats": 1, "normalise": "features"},
    **{"optimizer": "adam", "label_smoothing": 0, "noise": 0, "time_warp": 0},
    **{"offset": 0, "magnitude": 0, "window": 0},
}
OPTIONS = [
    *[f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()],
    "--no-bidirectional",
]


@pytest.fixture
def file(tmp_path):
    return write_json_lines(tmp_path / "walks.jsonl", make_dataset(counts=(24, 0, 12)))


@pytest.fixture
def folders(tmp_path):
    return ("--output", tmp_path / "trained", "--runs", tmp_path / "runs")


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(workers, "available", lambda *_: 0)


@pytest.fixture
def made_up(monkeypatch):
    """Trials whose outcomes are made up: the lower the learning rate, the better."""

    def evaluate(config, watch):
        return Outcome(config.training.learning_rate, 5.0, 1.0)

    class Evaluator:
        def __init__(self, dataset, config):
            pass

        def __enter__(self):
            return evaluate

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(trials, "evaluator", Evaluator)


class TestRefusals:
    def test_before_the_first_trial(self, file, folders, tmp_path, made_up):
        """Wrong files and settings are refused before anything is written."""
        folders = (*folders, "--trials", 1)
        missing = refusal("search", tmp_path / "no.csv", *folders)
        assert "no.csv" in missing
        assert "hidden" in refusal("search", file, *folders, "--hidden", 0)
        both = ("--updates", 5, "--epochs", 5)
        assert "not both" in refusal("search", file, *folders, *both)
        assert "int8" in refusal("search", file, *folders, "--int8", "--cell", "gru")
        assert "holds no search" in refusal("search", file, *folders, "--resume")
        image = ("--image", 9, 9)
        assert "image" in refusal("search", file, *folders, *image)
        assert "folds" in refusal("search", file, *folders, "--folds", 99)
        assert not list((tmp_path / "runs").glob("*/search/*"))

    def test_without_optuna(self, file, folders, monkeypatch):
        """Without Optuna the command says how to install it."""
        for name in [name for name in sys.modules if name.startswith("model.search")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "model.cli.search_table", raising=False)
        monkeypatch.setitem(sys.modules, "optuna", None)
        message = refusal("search", file, *folders)
        assert "optuna is not installed. To install what a search" in message
        assert libraries._install_command("search") in message


@pytest.mark.slow
class TestSearch:
    def test_search(self, file, folders, tmp_path):
        """A search prints its trials, the best settings and the command for them, and
        writes the bundle that this command writes."""
        output = run("search", file, *folders, *OPTIONS, "--trials", 4).stdout
        lines = [line for line in output.splitlines() if line.startswith("trial ")]
        assert [line.split(":")[0] for line in lines if "cost" in line] == [
            f"trial {n}" for n in range(1, 5)
        ]
        assert output.count("12 sequences") <= 1
        folder = tmp_path / "runs" / "walks" / "search"
        assert (folder / "report.html").is_file()
        values = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        assert len(values["trials"]) == 4
        exported = bundle.read(tmp_path / "trained" / "walks" / "1")
        settings = exported.metadata.training.settings
        rate = values["settings"]["training"]["learning_rate"]
        assert settings["training"]["learning_rate"] == rate
        assert settings["training"]["seed"] == 0
        assert settings["network"]["hidden"] == 4
        command = next(line for line in output.splitlines() if "unrolled train" in line)
        words = shlex.split(command.partition(": ")[2])
        assert command.partition(": ")[2] == values["command"]
        run(*words[1:], "--promote", "never")
        again = bundle.read(tmp_path / "trained" / "walks" / "2")
        np.testing.assert_allclose(
            again.golden().probabilities,
            exported.golden().probabilities,
            rtol=0,
            atol=1e-6,
        )
        assert again.metadata.training.settings == settings

    def test_python(self, made_up, tmp_path, capsys):
        """`model.train(search=...)` trains with the best settings that the command finds;
        zero minutes and resume take those of the last search."""
        options = {"output": tmp_path / "trained", "runs": tmp_path / "runs"}
        file = write_json_lines(tmp_path / "w.jsonl", make_dataset(counts=(24, 0, 12)))
        settings = TINY | {"bidirectional": False, "cell": "lstm"}
        result = model.train(file, search=0.02, progress=False, **options, **settings)
        again = model.train(
            file, search=0, resume=True, progress=False, **options, **settings
        )
        rates = [
            bundle.read(r.bundle).metadata.training.settings["training"][
                "learning_rate"
            ]
            for r in (result, again)
        ]
        assert rates[0] == rates[1]
        assert rates[0] < 0.01
        values = (tmp_path / "runs" / "w" / "search" / "search.json").read_text()
        assert json.loads(values)["settings"]["training"]["learning_rate"] == rates[0]

    def test_train_search(self, file, folders, made_up):
        """`unrolled train --search` searches first."""
        options = (*OPTIONS, "--search", 0.01)
        output = run("train", file, *folders, *options).stdout
        assert "best so far" in output
        assert "train with the best settings: unrolled train" in output


def test_ctrl_c(file, folders, tmp_path, made_up, monkeypatch):
    """Ctrl-C says how many trials there are, and how to go on."""
    ask = study._ask

    def press(searched, space, number):
        if number == 3:
            raise KeyboardInterrupt
        return ask(searched, space, number)

    monkeypatch.setattr(study, "_ask", press)
    result = run("search", file, *folders, *OPTIONS, "--trials", 9, code=130)
    stopped, proceed, use = result.stderr.splitlines()
    folder = tmp_path / "runs/walks/search"
    assert stopped == f"stopped; finished trials in {folder}: 3"
    assert "--resume" in proceed
    assert "--resume --minutes 0" in use
    assert not (tmp_path / "trained").exists()


def test_streamable(capsys):
    """A best network that can't be streamed is announced, with the option against it."""
    console.print_search("best", "page", None, bidirectional=True)
    assert "--no-bidirectional" in capsys.readouterr().out
    console.print_search("best", "page", "unrolled train a", bidirectional=False)
    assert "bidirectional" not in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_resumed(file, tmp_path):
    """A search that is killed at any moment and resumed has the trials of an uncut one; two
    at once in different folders don't disturb each other."""

    def start(folder, *options):
        command = [sys.executable, "-m", "model", "search", file, *OPTIONS]
        command += ["--trials", 5, "--runs", tmp_path / folder, *options]
        command += ["--output", tmp_path / folder / "trained"]
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(process):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def finished(folder):
        text = (tmp_path / folder / "walks/search/search.json").read_text("utf-8")
        return [
            {k: v for k, v in trial.items() if k != "seconds"}
            for trial in json.loads(text)["trials"]
        ]

    whole, cut = start("whole"), start("cut")
    journal = tmp_path / "cut/walks/search/study.log"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and cut.poll() is None:
        if journal.exists() and journal.read_text("utf-8").count('"error"') >= 2:
            break
        time.sleep(0.02)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    finish(start("cut", "--resume"))
    finish(whole)
    assert len(finished("whole")) == 5
    assert finished("cut") == finished("whole")


def test_every_option_of_train(monkeypatch):
    """A command line has the options that turn one config into another."""
    base = Config(name="walks", network={"hidden": 5})
    config = base.update(
        {
            "name": "other",
            "data": {"source": "a.csv", "ignore": ("x", "y")},
            "network": {"hidden": 5, "bidirectional": False, "cell": "lstm"},
            "augmentation": {"image": (28, 28), "noise": 0.1},
        }
    )
    assert flags.options(config, base) == [
        *("--name", "other", "--ignore", "x,y"),
        *("--cell", "lstm", "--no-bidirectional"),
        *("--image", "28", "28", "--noise", "0.1"),
    ]
