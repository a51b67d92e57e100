"""Requests sent side by side, each over a connection of its own."""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from bench.http_connection import Broken, Connection

LOST = 0


class Reply(NamedTuple):
    """What came back."""

    status: int  # LOST: nothing
    body: bytes
    seconds: float


async def ask(
    port: int, request: bytes, patience: float = 30, wait: float = 0
) -> Reply:
    """Send a request after a while, and wait for its answer."""
    begun = time.monotonic()
    connection = None
    try:
        connection = await Connection.open(port)
        await asyncio.sleep(wait)
        begun = time.monotonic()
        async with asyncio.timeout(patience):
            status, body = await connection.ask(request)
        return Reply(status, body, time.monotonic() - begun)
    except (OSError, Broken, TimeoutError):
        return Reply(LOST, b"", time.monotonic() - begun)
    finally:
        if connection is not None:
            connection.abort()


async def fire(
    port: int, requests: Iterable[bytes], patience: float = 30, every: float = 0
) -> list[Reply]:
    """All at once, or one after another each so many seconds; in their order."""
    sent = [
        ask(port, one, patience, every * place) for place, one in enumerate(requests)
    ]
    return await asyncio.gather(*sent)
