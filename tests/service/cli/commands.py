"""Run the commands in this process, and check their output."""

import re

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
