"""Memory over time, and over shapes: it settles."""

import asyncio
import itertools

import numpy as np

from tests.robustness.endurance.soak import Soak, leaking, soaked, verdict
from tests.robustness.harness import reference
from tests.robustness.harness.burst import ask
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving

LEAK_BYTES = 1024  # of each request: what the rule must see
ENGINES = ("onnx", "tensorflow")
# One that reads both ways: the engine is given whole batches as they come.
NETWORK = "vowels"
ROWS, STEPS = 20, 100
AT_ONCE = 4  # requests
SECOND_MIB = 10.0


@row("D1", "soak: callers of all kinds at 0.6 R, for minutes", full=15)
def steady(tally: Tally, amount: int) -> None:
    with serving(tally) as service:
        soak = soaked(service, amount)
    _tell(tally, soak)
    for name, (seen, allowed) in verdict(soak).items():
        tally.check(seen <= allowed, f"{name}: {seen:.2f}, not {allowed:g}")
    wrong = sum(soak.faults.values())
    tally.total += soak.asked
    tally.passed += soak.asked - wrong
    tally.faults += [f"{n} x {told}" for told, n in soak.faults.items()]


@row("D3", "the same with 1 KiB lost of each request: it must be seen", full=4)
def lost(tally: Tally, amount: int) -> None:
    with serving(tally, **leaking(LEAK_BYTES)) as service:
        soak = soaked(service, amount)
    _tell(tally, soak)
    seen = verdict(soak)
    told = [name for name, (value, allowed) in seen.items() if value > allowed]
    tally.check("slope MiB/min" in told, f"a leak goes unseen: {seen}")
    leak = 60 * soak.rate * LEAK_BYTES / 2**20
    tally.check(seen["slope MiB/min"][0] > leak / 2, f"{leak:.0f} MiB/min: {seen}")
    tally.figure("lost MiB/min", leak)


def _tell(tally: Tally, soak: Soak) -> None:
    tally.figure("visits", f"{soak.asked:,} ({soak.rate:.0f}/s)")
    tally.figure("MiB at the end", soak.total[-1])
    for name, (value, _) in verdict(soak).items():
        tally.figure(name, f"{value:.2f}")


@row("D2", "2,000 shapes of batches, twice, with each engine", full=2000)
def shapes(tally: Tally, amount: int) -> None:
    every = list(itertools.product(range(1, ROWS + 1), range(1, STEPS + 1)))
    np.random.default_rng(0).shuffle(every)
    for engine in ENGINES:
        with serving(
            tally,
            bundles=reference.folder(NETWORK),
            engine=engine,
            workers=1,
            log_level="warning",
        ) as service:
            asyncio.run(_pass(tally, service, every[:amount]))
            between = service.settled_rss()
            asyncio.run(_pass(tally, service, every[:amount]))
            more = service.settled_rss() - between
            told = f"{engine}: {more:.1f} MiB more in the second pass"
            tally.check(more <= SECOND_MIB, told)
            tally.figure(f"{engine} MiB more", f"{more:.2f} (of {between:.0f})")


async def _pass(tally: Tally, service: Service, every: list[tuple[int, int]]) -> None:
    features = reference.alone(NETWORK).metadata.input.features
    for place in range(0, len(every), AT_ONCE):
        some = every[place : place + AT_ONCE]
        sent = []
        for rows, steps in some:
            frames = np.full((steps, features), 0.5)
            body = reference.body(NETWORK, *[frames] * rows)
            sent.append(ask(service.port, reference.request("/classify", body)))
        for (rows, steps), reply in zip(some, await asyncio.gather(*sent), strict=True):
            tally.check(reply.status == 200, f"{rows} x {steps}: {reply.status}")
