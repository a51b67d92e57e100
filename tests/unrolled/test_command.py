"""The command `unrolled`: both halves in one tool."""

import subprocess
import sys

import typer
from typer.testing import CliRunner

from model import __main__ as training
from service import __main__ as serving
from tests.support.servers import ROOT, SECONDS
from unrolled import __main__ as command

COMMANDS = [name for names in command.PANELS.values() for name in names]


def python(script):
    """The output of a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout


def test_has_all_commands():
    """It has the commands of `python -m model` and of `python -m service`."""
    halves = (typer.main.get_command(half.app) for half in (training, serving))
    assert sorted(COMMANDS) == sorted(name for half in halves for name in half.commands)


def test_help():
    """Its help shows the commands of each half under a heading, each with a sentence."""
    text = CliRunner().invoke(command.app, ["--help"]).stdout
    first, *others = command.PANELS
    listed = text[text.index(f"{first}:") :].splitlines()
    assert {f"{panel}:" for panel in others} <= set(listed)
    rows = [line.split(maxsplit=1) for line in listed if line.startswith("  ")]
    assert [name for name, _ in rows] == COMMANDS


def test_help_of_a_command():
    """The help of each command is that of its half."""
    text = CliRunner().invoke(command.app, ["train", "--help"]).stdout
    assert "--epochs" in text


def test_suggests():
    """A mistyped command is refused with the command that was meant."""
    result = CliRunner().invoke(command.app, ["trian"])
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr


def test_serving_imports_no_training():
    """A serving command doesn't wait for the imports of training."""
    script = (
        "import sys\n"
        "from unrolled.__main__ import app\n"
        "app(['key'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('model')])\n"
    )
    assert python(script).endswith("\n[]\n")


def test_without_tensorflow(tmp_path):
    """Training without TensorFlow prints the command that installs it; commands that
    don't need TensorFlow work."""
    script = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'onnx', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from typer.testing import CliRunner\n"
        "from unrolled.__main__ import app\n"
        "for words in (['inspect', 'bundles/digits'], ['datasets'],\n"
        f"              ['keygen', {str(tmp_path / 'key.pem')!r}], ['train', 'digits']):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    print(words[0], result.exit_code, result.stderr)\n"
    )
    assert list(filter(None, python(script).splitlines())) == [
        "inspect 0 ",
        "datasets 0 ",
        "keygen 0 ",
        "train 2 error: keras is not installed. To install TensorFlow and what else"
        " training needs: make install-training",
    ]
