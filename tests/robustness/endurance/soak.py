"""Serve callers of all kinds for a long time, and watch the memory.

    python -m tests.robustness.endurance.soak --minutes 30 --plot soak.png

R is measured first, with the same mixture. In the second half, memory may rise above
its mean by 20 MiB (without the 5 % that are farthest) and by 0.5 MiB a minute, and the
99th percentile of a minute by 20 %.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tests.robustness.endurance.mixed_traffic import Visitors
from tests.robustness.harness import fault_injection
from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.service import Service, serving

LOAD = 0.6  # of R
MEASURED_SECONDS = 8
SPREAD_MIB, SLOPE_MIB, DRIFT = 20.0, 0.5, 1.2
TRIMMED = 0.05


@dataclass(slots=True)
class Soak:
    """What was seen."""

    rate: float = 0
    seconds: list[float] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)  # MiB of that process
    others: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)  # ms of each whole minute
    p99: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        return sum(n for k, n in self.counts.items() if k not in ("compared", "faults"))

    @property
    def total(self) -> list[float]:
        return [a + b for a, b in zip(self.serving, self.others, strict=True)]


def spread(mib: Iterable[float]) -> float:
    """How far the most stands over the mean, without those farthest."""
    ordered = np.sort(np.array(list(mib)))
    cut = int(TRIMMED * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    return float(kept.max() - kept.mean())


def slope(seconds: list[float], mib: list[float]) -> float:
    """MiB a minute, by least squares."""
    return float(np.polyfit(np.array(seconds) / 60, np.array(mib), 1)[0])


def drift(p99: list[float]) -> float:
    """Of the second half's minutes over the first half's, the first one left out."""
    settled = p99[1:]
    half = len(settled) // 2
    if not half:
        return 1.0
    return float(np.median(settled[-half:]) / np.median(settled[:half]))


def verdict(soak: Soak) -> dict[str, tuple[float, float]]:
    """Of each rule what was seen, and what may be."""
    half = len(soak.seconds) // 2
    late, total = soak.seconds[half:], soak.total[half:]
    return {
        "spread MiB": (spread(total), SPREAD_MIB),
        "slope MiB/min": (slope(late, total), SLOPE_MIB),
        "p99 drift": (drift(soak.p99), DRIFT),
    }


def soaked(service: Service, minutes: float, load: float = LOAD) -> Soak:
    """Let them come for so long."""
    made = Soak()
    measured = Visitors(service.port)
    _visit(measured, MEASURED_SECONDS)
    everyone = ("native", "gzip", "v1", "v2 binary", "bad", "cancelled")
    every = sum(
        measured.book.counts[k] for k in (*everyone, "web sockets", "JSON lines")
    )
    made.rate = load * every / MEASURED_SECONDS
    service.before = service.counts()  # threads come with the first use of each kind
    visitors = Visitors(service.port, made.rate)
    ended = threading.Event()
    begun = time.monotonic()

    def watch() -> None:
        while not ended.wait(1):
            family = service.family()
            # Together in one breath: what they share moves from one to the other.
            first, *others = [service.rss(pid) for pid in family]
            made.seconds.append(time.monotonic() - begun)
            made.serving.append(first)
            made.others.append(sum(others))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        _visit(visitors, 60 * minutes)
    finally:
        ended.set()
        watching.join(5)
    book = visitors.book
    whole = range(int(minutes)) if len(book.minutes) >= minutes else range(0)
    made.p50 = [book.percentile(minute, 50) for minute in whole]
    made.p99 = [book.percentile(minute, 99) for minute in whole]
    made.counts, made.faults = dict(book.counts), dict(book.faults)
    return made


def _visit(visitors: Visitors, seconds: float) -> None:
    async def run() -> None:
        visiting = asyncio.create_task(visitors.run())
        await asyncio.wait([visiting], timeout=seconds)
        visitors.ended = True
        await visiting

    uvloop.run(run())


def leaking(size: int) -> dict[str, Any]:
    """Settings of a service that loses so many bytes of each request."""
    return {
        "module": "tests.robustness.harness.fault_injection",
        "injected": {fault_injection.LEAK_BYTES: size},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.endurance.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--load", type=float, default=LOAD, help="share of R")
    parser.add_argument(
        "--leak", type=int, default=0, help="bytes lost of each request"
    )
    parser.add_argument("--plot", type=Path, help="memory over time, PNG")
    parser.add_argument("--json", type=Path, help="all figures")
    options = parser.parse_args()
    tally = Tally()
    with serving(tally, **(leaking(options.leak) if options.leak else {})) as service:
        soak = soaked(service, options.minutes, options.load)
    seen = verdict(soak)
    fine = tally.good and not soak.faults
    for name, (value, allowed) in seen.items():
        fine &= value <= allowed
        print(f"{name}: {value:.2f} (at most {allowed:g})")
    print(f"{soak.rate:.0f} a second: {soak.counts}")
    print(
        "p50 / p99 ms:",
        *(f"{a:.1f}/{b:.1f}" for a, b in zip(soak.p50, soak.p99, strict=True)),
    )
    for told in [*tally.faults, *(f"{n} x {t}" for t, n in soak.faults.items())]:
        print("!", told)
    if options.plot:
        from tests.robustness.endurance.soak_plot import plot

        plot(soak, options.plot)
    if options.json:
        names = Soak.__slots__
        options.json.write_text(json.dumps({n: getattr(soak, n) for n in names}))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
