"""Serve clients of all kinds for a long time, and measure memory and latency.

    python -m tests.robustness.endurance.soak --minutes 30 --plot soak.png

The capacity R is measured first, with the same mix. In the second half, memory may
exceed its mean by 20 MiB (without the 5 % of outliers) and rise by 0.5 MiB a minute,
and the p99 latency of a minute may be 20 % above the first half's.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.servers import repeating
from tests.robustness.endurance.mixed_traffic import MixedTraffic
from tests.robustness.harness import fault_injection
from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.service import Service, serving

LOAD = 0.6  # of R
CAPACITY_SECONDS = 8
SPREAD_MIB, SLOPE_MIB, DRIFT = 20.0, 0.5, 1.2
TRIMMED = 0.05


@dataclass(slots=True)
class Soak:
    """The measurements."""

    rate: float = 0
    seconds: list[float] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)  # MiB of that process
    others: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)  # ms of each whole minute
    p99: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, int]:
        """Requests and streams by kind."""
        others = ("compared", "failures")
        return {kind: n for kind, n in self.counts.items() if kind not in others}

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())

    @property
    def total(self) -> list[float]:
        return [a + b for a, b in zip(self.serving, self.others, strict=True)]


def spread(mib: Iterable[float]) -> float:
    """How far the maximum exceeds the mean, without outliers."""
    ordered = np.sort(np.array(list(mib)))
    cut = int(TRIMMED * len(ordered))
    trimmed = ordered[cut : len(ordered) - cut]
    return float(trimmed.max() - trimmed.mean())


def slope(seconds: list[float], mib: list[float]) -> float:
    """MiB a minute, by least squares."""
    return float(np.polyfit(np.array(seconds) / 60, np.array(mib), 1)[0])


def drift(p99: list[float]) -> float:
    """The second half's median over the first half's, without the first minute."""
    settled = p99[1:]
    half = len(settled) // 2
    if not half:
        return 1.0
    return float(np.median(settled[-half:]) / np.median(settled[:half]))


def criteria(soak: Soak) -> dict[str, tuple[float, float]]:
    """Each criterion's value and its limit."""
    half = len(soak.seconds) // 2
    late, total = soak.seconds[half:], soak.total[half:]
    return {
        "spread MiB": (spread(total), SPREAD_MIB),
        "slope MiB/min": (slope(late, total), SLOPE_MIB),
        "p99 drift": (drift(soak.p99), DRIFT),
    }


def run(service: Service, minutes: float, load: float = LOAD) -> Soak:
    """Send requests for so long, and measure."""
    soak = Soak()
    warm_up = MixedTraffic(service.port)
    _send(warm_up, CAPACITY_SECONDS)
    soak.counts = dict(warm_up.record.counts)
    soak.rate = load * soak.requests / CAPACITY_SECONDS
    # Threads start with the first request of each kind.
    service.baseline = service.open_resources()
    traffic = MixedTraffic(service.port, soak.rate)
    start = time.monotonic()

    def measure() -> None:
        # At one moment: shared pages move from one process to another.
        first, *others = [service.memory_mib(pid) for pid in service.processes()]
        soak.seconds.append(time.monotonic() - start)
        soak.serving.append(first)
        soak.others.append(sum(others))

    with repeating(measure, 1):
        _send(traffic, 60 * minutes)
    record = traffic.record
    whole = range(int(minutes)) if len(record.minutes) >= minutes else range(0)
    soak.p50 = [record.percentile(minute, 50) for minute in whole]
    soak.p99 = [record.percentile(minute, 99) for minute in whole]
    soak.counts, soak.failures = dict(record.counts), dict(record.failures)
    return soak


def _send(traffic: MixedTraffic, seconds: float) -> None:
    async def send() -> None:
        task = asyncio.create_task(traffic.run())
        await asyncio.wait([task], timeout=seconds)
        traffic.ended = True
        await task

    uvloop.run(send())


def leaking(size: int) -> dict[str, Any]:
    """Settings of a service that leaks so many bytes at each request."""
    injected = {fault_injection.LEAK_BYTES: size}
    return {"module": fault_injection.MODULE, "injected": injected}


def plot(soak: Soak, file: Path) -> None:
    """Memory of the serving process and the others; below, latency by minute."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (memory, latency) = pyplot.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=[2.2, 1]
    )
    minutes = [second / 60 for second in soak.seconds]
    memory.plot(minutes, soak.total, label="all")
    memory.plot(minutes, soak.others, label="workers and their forkserver")
    memory.plot(minutes, soak.serving, label="the serving process")
    half = minutes[len(minutes) // 2]
    memory.axvspan(half, minutes[-1], alpha=0.1, label="evaluated")
    memory.set_ylabel("memory (MiB, anonymous, proportional)")
    memory.set_ylim(0)
    memory.legend(loc="lower left", ncols=2)
    memory.grid(alpha=0.3)
    middles = [minute + 0.5 for minute in range(len(soak.p99))]
    latency.plot(middles, soak.p99, "o-", label="p99")
    latency.plot(middles, soak.p50, "s-", label="p50")
    latency.set_xlabel("time (minutes)")
    latency.set_ylabel("latency (ms)")
    latency.set_ylim(0)
    latency.legend()
    latency.grid(alpha=0.3)
    counts = ", ".join(f"{n:,} {kind}" for kind, n in soak.kinds.items())
    values = ", ".join(f"{k} {value:.2f}" for k, (value, _) in criteria(soak).items())
    failures = sum(soak.failures.values())
    figure.suptitle(f"{counts}\n{failures} failures; {values}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.endurance.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=15)
    add("--load", type=float, default=LOAD, help="share of R")
    add("--leak", type=int, default=0, help="bytes leaked at each request")
    add("--plot", type=Path, help="memory and latency over time, PNG")
    add("--json", type=Path, help="all figures")
    options = parser.parse_args()
    tally = Tally()
    with serving(tally, **(leaking(options.leak) if options.leak else {})) as service:
        soak = run(service, options.minutes, options.load)
    ok = tally.ok and not soak.failures
    for name, (value, limit) in criteria(soak).items():
        ok &= value <= limit
        print(f"{name}: {value:.2f} (at most {limit:g})")
    print(f"{soak.rate:.0f} a second: {soak.counts}")
    latencies = zip(soak.p50, soak.p99, strict=True)
    print("p50 / p99 ms:", *(f"{p50:.1f}/{p99:.1f}" for p50, p99 in latencies))
    failures = [f"{n} x {message}" for message, n in soak.failures.items()]
    for message in [*tally.failures, *failures]:
        print("!", message)
    if options.plot:
        plot(soak, options.plot)
    if options.json:
        names = Soak.__slots__
        options.json.write_text(json.dumps({n: getattr(soak, n) for n in names}))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
