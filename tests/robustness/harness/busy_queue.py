"""A service with a full queue: long sequences, computed one at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tests.robustness.harness import reference
from tests.robustness.harness.burst import Reply, send
from tests.robustness.harness.service import Service

MODEL = "digits"
LONG_STEPS = 10_000
LONG_SEQUENCES = 6  # in a request: as many as its body may hold
ONE_AT_A_TIME: dict[str, Any] = {
    "workers": 1,
    "batch_rows": 1,
    "queue_steps": 1_000_000,
    "bundles": reference.bundle_folder(MODEL),
}


def long_request() -> bytes:
    """A request with long sequences."""
    shape = LONG_STEPS, reference.model(MODEL).features
    frames = np.random.default_rng(0).random(shape).round(1)
    return reference.http_request(MODEL, *[frames] * LONG_SEQUENCES)


@asynccontextmanager
async def busy(service: Service, requests: int) -> AsyncIterator[list[Reply]]:
    """So many long requests are under way during the block; their replies are in the
    list at its end."""
    request = long_request()
    tasks = [asyncio.create_task(send(service.port, request, 60)) for _ in range(requests)]  # fmt: skip
    replies: list[Reply] = []
    admitted = await wait_admitted(service, requests * LONG_SEQUENCES)
    assert admitted, "the long sequences are not admitted"
    try:
        yield replies
    finally:
        replies += await asyncio.gather(*tasks)


async def wait_admitted(service: Service, count: int) -> bool:
    """So many sequences have been admitted since the start, within 15 s."""
    name = "unrolled_sequence_steps_count"
    return await _wait(lambda: service.metric(name) >= count, 15)


async def wait_idle(service: Service) -> bool:
    """No steps wait any more, within 20 s."""
    return await _wait(lambda: not service.metric("unrolled_waiting_steps"), 20)


async def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(condition):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def computed_steps(service: Service) -> float:
    """Steps computed for sequences, without padding."""
    return service.metric("unrolled_steps_total", 'kind="useful"')
