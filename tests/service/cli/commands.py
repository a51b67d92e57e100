"""Run the commands in this process, and check their output."""

import io
import re

import pandas
from typer.testing import CliRunner

from service import __main__ as main


def invoke(*arguments, **options):
    return CliRunner().invoke(main.app, [*map(str, arguments)], **options)


def assert_fails(result, message=""):
    """The command failed with exit code 1 and one line on stderr with the message."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def plain(output):
    """The output of a terminal without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def predict(*arguments, **options):
    """The table that `predict` prints, and its lines on standard error."""
    result = invoke("predict", *arguments, **options)
    assert result.exit_code == 0, result.stderr
    frame = pandas.read_csv(io.StringIO(result.stdout), dtype={"run": str})
    return frame, result.stderr.splitlines()
