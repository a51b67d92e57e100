"""Rows D1 to D3: memory settles, over time and over batch shapes."""

import asyncio
import itertools

import numpy as np

from tests.robustness.endurance import soak
from tests.robustness.harness import reference
from tests.robustness.harness.burst import send
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import MIB, Service, serving

LEAK_BYTES = 1024  # of each request: the criterion must notice it
ENGINES = ("onnx", "tensorflow")
# A bidirectional model, whose batches the engine gets as they come.
MODEL = "vowels"
ROWS, STEPS = 20, 100
CONCURRENT = 4  # requests
SECOND_PASS_MIB = 10.0


@row("D1", "Soak: clients of all kinds at 0.6 R, in minutes", full=15)
def steady(tally: Tally, amount: int) -> None:
    """Memory and latency stay within the criteria, and every response is correct."""
    with serving(tally) as service:
        result = soak.run(service, amount)
    _report(tally, result)
    for name, (value, limit) in soak.criteria(result).items():
        tally.check(value <= limit, f"{name}: {value:.2f}, not {limit:g}")
    failures = result.failures
    tally.total += result.requests
    tally.passed += result.requests - sum(failures.values())
    tally.failures += [f"{n} x {message}" for message, n in failures.items()]


@row("D3", "The soak with 1 KiB leaked at each request, which it must notice", full=4)
def leak_is_noticed(tally: Tally, amount: int) -> None:
    """The slope of the memory exceeds its limit, and is that of the leak."""
    with serving(tally, **soak.leaking(LEAK_BYTES)) as service:
        result = soak.run(service, amount)
    _report(tally, result)
    slope, limit = soak.criteria(result)["slope MiB/min"]
    leak = 60 * result.rate * LEAK_BYTES / MIB
    tally.check(slope > limit, f"a leak goes unnoticed: {slope:.2f} MiB/min")
    tally.check(slope > leak / 2, f"a leak of {leak:.0f} MiB/min: {slope:.2f}")
    tally.figure("leaked MiB/min", leak)


def _report(tally: Tally, result: soak.Soak) -> None:
    tally.figure("requests", f"{result.requests:,} ({result.rate:.0f}/s)")
    tally.figure("MiB at the end", result.total[-1])
    for name, (value, _) in soak.criteria(result).items():
        tally.figure(name, f"{value:.2f}")


@row("D2", "2,000 shapes of batches, twice, with each engine", full=2000)
def batch_shapes(tally: Tally, amount: int) -> None:
    """The second pass takes no more memory."""
    shapes = list(itertools.product(range(1, ROWS + 1), range(1, STEPS + 1)))
    np.random.default_rng(0).shuffle(shapes)
    for engine in ENGINES:
        settings = {"engine": engine, "workers": 1, "log_level": "warning"}
        bundles = reference.bundle_folder(MODEL)
        with serving(tally, bundles=bundles, **settings) as service:
            asyncio.run(_send_shapes(tally, service, shapes[:amount]))
            before = service.settled_memory_mib()
            asyncio.run(_send_shapes(tally, service, shapes[:amount]))
            more = service.settled_memory_mib() - before
            message = f"{engine}: {more:.1f} MiB more in the second pass"
            tally.check(more <= SECOND_PASS_MIB, message)
            tally.figure(f"{engine} MiB more", f"{more:.2f} (of {before:.0f})")


async def _send_shapes(
    tally: Tally, service: Service, shapes: list[tuple[int, int]]
) -> None:
    features = reference.model(MODEL).features
    for place in range(0, len(shapes), CONCURRENT):
        chosen = shapes[place : place + CONCURRENT]
        requests = [
            reference.http_request(MODEL, *[np.full((steps, features), 0.5)] * rows)
            for rows, steps in chosen
        ]
        replies = await asyncio.gather(*(send(service.port, r) for r in requests))
        for (rows, steps), reply in zip(chosen, replies, strict=True):
            tally.check(reply.status == 200, f"{rows} x {steps}: {reply.status}")
