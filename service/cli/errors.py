"""Report the failures of client commands on one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import typer

from service.client import ClientError

FAILURES = (ClientError, ValueError, OSError, orjson.JSONEncodeError)


@contextmanager
def report() -> Iterator[None]:
    """Print an error of the block on one line, and exit with code 1."""
    try:
        yield
    except FAILURES as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
