"""A queue with something in it: long sequences in a service that computes one at a
time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tests.robustness.harness import reference
from tests.robustness.harness.burst import Reply, ask
from tests.robustness.harness.service import Service

NETWORK = "digits"
LONG = 10_000  # steps
PART = 6  # such sequences in a request: the body is within its limit
ONE_LANE: dict[str, Any] = {
    "workers": 1,
    "batch_rows": 1,
    "queue_steps": 1_000_000,
    "bundles": reference.folder(NETWORK),
}


def filler(count: int) -> bytes:
    """A request of so many long sequences."""
    rng = np.random.default_rng(0)
    frames = rng.random((LONG, reference.alone(NETWORK).metadata.input.features))
    made = reference.body(NETWORK, *[frames.round(1)] * count)
    return reference.request(reference.path(NETWORK), made)


@asynccontextmanager
async def congested(service: Service, requests: int) -> AsyncIterator[list[Reply]]:
    """So many requests of long sequences are computed meanwhile; their replies are
    there when the block has ended."""
    body = filler(PART)
    asked = [asyncio.create_task(ask(service.port, body, 60)) for _ in range(requests)]
    replies: list[Reply] = []
    admitted = await queued(service, requests * PART)
    assert admitted, "the long sequences are not admitted"
    try:
        yield replies
    finally:
        replies += await asyncio.gather(*asked)


async def queued(service: Service, count: int, seconds: float = 15) -> bool:
    """So many sequences have been admitted since the start."""
    end = asyncio.get_running_loop().time() + seconds
    name = "unrolled_sequence_steps_count"
    while await asyncio.to_thread(service.metric, name) < count:
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def waiting(service: Service) -> float:
    """Steps that are admitted and not computed."""
    return await asyncio.to_thread(service.metric, "unrolled_waiting_steps")


async def settled(service: Service, seconds: float = 20) -> bool:
    """Nothing waits any more."""
    end = asyncio.get_running_loop().time() + seconds
    while await waiting(service):
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(0.05)
    return True


def useful(service: Service) -> float:
    """Steps that were computed."""
    return service.metric("unrolled_steps_total", 'kind="useful"')
