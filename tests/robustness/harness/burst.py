"""A burst of requests, each over a connection of its own."""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from bench.http_connection import Connection, ConnectionLost

LOST = 0


class Reply(NamedTuple):
    """A response and its latency."""

    status: int  # LOST: no response
    body: bytes
    seconds: float


async def send(port: int, request: bytes, timeout: float = 30, delay: float = 0) -> Reply:  # fmt: skip
    """Send a request after a delay, and wait for its response."""
    start = time.monotonic()
    connection = None
    try:
        connection = await Connection.open(port)
        await asyncio.sleep(delay)
        start = time.monotonic()
        async with asyncio.timeout(timeout):
            status, body = await connection.request(request)
        return Reply(status, body, time.monotonic() - start)
    except (OSError, ConnectionLost, TimeoutError):
        return Reply(LOST, b"", time.monotonic() - start)
    finally:
        if connection is not None:
            connection.abort()


async def send_all(
    port: int, requests: Iterable[bytes], timeout: float = 30, interval: float = 0
) -> list[Reply]:
    """Send requests at once, or at an interval; the replies in their order."""
    return await asyncio.gather(
        *(
            send(port, request, timeout, interval * place)
            for place, request in enumerate(requests)
        )
    )
