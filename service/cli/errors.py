"""Report the failures of client commands on one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import orjson
import typer

from service.client import RequestError, StreamLost

FAILURES = (
    *(httpx.HTTPError, httpx.InvalidURL, RequestError, StreamLost),
    *(ValueError, OSError, orjson.JSONEncodeError),
)


def describe(error: Exception, url: str) -> str:
    """The message for a failed call to the service at a URL."""
    if isinstance(error, httpx.ConnectError):
        return f"{url}: {error}. Is the service running? `unrolled serve` starts one"
    return str(error)


@contextmanager
def report(url: str) -> Iterator[None]:
    """Print an error of the block on one line, and exit with code 1."""
    try:
        yield
    except FAILURES as error:
        typer.echo(f"error: {describe(error, url)}", err=True)
        raise typer.Exit(1) from None
