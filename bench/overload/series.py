"""One server, asked for more and more."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import networks, workloads
from bench.load_generator import Spec as Closed
from bench.memory import Memory
from bench.overload.generator import WINDOW, Spec
from bench.overload.probe import Probe

FACTORS = (0.5, 1, 2, 5, 10)
MOST = 12_000  # requests a second that the generator is asked for, at most
CONNECTIONS = 2_000
CLIENTS = 32  # of the closed loop
CALM = 0.5  # of R, after the overload
CALM_SECONDS = 8
CALM_LIMIT = 60  # seconds until what an overload left behind is over
BACK = 2.0  # times the p99 from before is as good as before
FLOOR_MS = 20  # below which it is good in any case


@dataclass(frozen=True, slots=True)
class Target:
    """A server that runs."""

    name: str
    pid: int
    port: int
    path: str
    live: str
    ready: str
    told: bool = True  # it is told deadlines: no other server knows the header
    tolerance: float = 1e-4


@dataclass(slots=True)
class Run:
    """A target at a rate."""

    server: str
    deadline: float
    factor: float
    rate: float
    result: dict[str, Any]
    probes: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    recovery: float | None = None  # seconds; None: not within the time looked at


def closed(target: Target, pool: workloads.Workload, seconds: float) -> float:
    """R: what it answers a second, when 32 connections are always busy."""
    spec = Closed(
        port=target.port,
        path=target.path,
        folder=str(pool.folder),
        seconds=seconds,
        connections=CLIENTS,
        tolerance=target.tolerance,
    )
    return _generate("bench.load", asdict(spec), seconds + 90)["rate"]


def runs(
    target: Target,
    pool: workloads.Workload,
    most: float,
    *,
    deadline: float,
    told: bool,
    seconds: float,
    factors: Iterable[float] = FACTORS,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Run]:
    """Each factor of `most`, the rate R; then a calm time.

    Args:
        told: the deadline stands in a header, where the server knows one.
    """
    made: list[Run] = []
    for factor in factors:
        spec = Spec(
            port=target.port,
            path=target.path,
            folder=str(pool.folder),
            rate=min(factor * most, MOST),
            seconds=seconds,
            deadline=deadline,
            told=told and target.told,
            connections=CONNECTIONS,
            after_rate=CALM * most,
            after_seconds=CALM_SECONDS if factor > 1 else 0,
            tolerance=target.tolerance,
            seed=len(made),
        )
        with (
            Memory(target.pid) as memory,
            Probe(target.port, target.live) as live,
            Probe(target.port, target.ready) as ready,
        ):
            limit = 3 * seconds + CALM_SECONDS + deadline + 90
            result = _generate("bench.overload.generator", asdict(spec), limit)
        made.append(
            Run(
                target.name,
                deadline,
                factor,
                spec.rate,
                result,
                {
                    "asked": len(live.statuses),
                    "failed": live.failed,
                    "slowest_ms": 1000 * live.slowest,
                    "ready_flaps": ready.flaps,
                },
                {
                    "before": memory.before,
                    "most": memory.most,
                    "after": memory.after,
                },
                _recovery(result["after"], made[0].result if made else None),
            )
        )
        goodput = result["goodput"]
        tell(f"{target.name}: {factor:g} R = {spec.rate:.0f}/s: {goodput:.0f} good")
        _calm(target)
    return made


def _calm(target: Target) -> None:
    """Return when nothing waits in it any more, as far as a prober can tell."""
    end, quick = time.monotonic() + CALM_LIMIT, 0
    while quick < 5 and time.monotonic() < end:
        time.sleep(0.2)
        begun = time.monotonic()
        fine = Probe(target.port, target.live).status() == 200
        quick = quick + 1 if fine and time.monotonic() < begun + 0.1 else 0


def _recovery(windows: list[dict], calm: dict | None) -> float | None:
    """Seconds until answers are as they were before: from which window on all are."""
    if not windows or not calm or not calm["accepted_ms"]:
        return None
    allowed = max(BACK * calm["accepted_ms"]["p99"], FLOOR_MS)
    well = [
        one["good"] >= 0.99 * one["asked"] and one["ms"] and one["ms"]["p99"] <= allowed
        for one in windows
    ]
    if not well[-1]:
        return None
    bad = [place for place, fine in enumerate(well) if not fine]
    return WINDOW * (bad[-1] + 1 if bad else 0)


def _generate(module: str, spec: dict[str, Any], seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", module, json.dumps(spec)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=networks.ROOT,
        timeout=seconds,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout)
