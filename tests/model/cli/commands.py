"""The training commands, run in this process."""

import re

from typer.testing import CliRunner

from model import __main__ as command
from tests.support.networks import make_dataset, write_json_lines

TINY = ("--layers", "1", "--hidden", "4", "--epochs", "2", "--batch", "8")
TINY += ("--validation-fraction", "0.15")
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


def write_data(path):
    """A user's file that names no parts; returns it as a data set."""
    data = make_dataset("label", counts=(60, 0, 0), spread=1.5)
    write_json_lines(path, data, parts=False)
    return data
