"""Runs of one server at multiples of its capacity, with probes and recovery."""

import http.client
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import workloads
from bench.load_generator import Spec as ClosedSpec
from bench.load_generator import generate
from bench.overload.generator import WINDOW, Spec
from bench.servers import repeating, watch_memory

FACTORS = (0.5, 1, 2, 5, 10)
MAX_RATE = 12_000  # requests a second of the generator
CONNECTIONS = 2_000
CLIENTS = 32  # of the closed loop
AFTER_LOAD = 0.5  # of R, after the overload
AFTER_SECONDS = 8
SETTLE_SECONDS = 60  # until the effects of a run are over
RECOVERED = 2.0  # times the p99 from before
FLOOR_MS = 20  # below which a p99 is recovered in any case
PROBE_TIMEOUT = 1.0
PROBE_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """A running server."""

    name: str
    pid: int
    port: int
    path: str
    live: str
    ready: str
    takes_deadlines: bool = True  # in a header, which no other server knows
    tolerance: float = 1e-4


@dataclass(slots=True)
class Run:
    """A server at a rate."""

    server: str
    deadline: float
    factor: float
    rate: float
    result: dict[str, Any]
    probes: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    recovery: float | None = None  # seconds; None: not within the observed time


@dataclass(slots=True)
class Probes:
    """The responses to an orchestrator's probes."""

    statuses: list[int] = field(default_factory=list)  # 0: no response in time
    slowest: float = 0.0

    @property
    def failed(self) -> int:
        return sum(status != 200 for status in self.statuses)

    @property
    def flaps(self) -> int:
        """Changes from ready to not ready."""
        ready = [status == 200 for status in self.statuses]
        return sum(a and not b for a, b in itertools.pairwise(ready))


@contextmanager
def probing(port: int, path: str) -> Iterator[Probes]:
    """Probe a path until the block ends, over a new connection each time."""
    probes = Probes()

    def send() -> None:
        start = time.perf_counter()
        probes.statuses.append(probe(port, path))
        probes.slowest = max(probes.slowest, time.perf_counter() - start)

    with repeating(send, PROBE_INTERVAL):
        yield probes


def probe(port: int, path: str) -> int:
    """The status of a path; 0: no response within a second."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT)
    start = time.perf_counter()
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return status if time.perf_counter() - start <= PROBE_TIMEOUT else 0


def capacity(target: Target, pool: workloads.Workload, seconds: float) -> float:
    """R: responses a second while 32 connections are always busy."""
    spec = ClosedSpec(
        port=target.port,
        path=target.path,
        folder=str(pool.folder),
        seconds=seconds,
        connections=CLIENTS,
        tolerance=target.tolerance,
    )
    return generate(spec, timeout=seconds + 90)["rate"]


def measure(
    target: Target,
    pool: workloads.Workload,
    r: float,
    *,
    deadline: float,
    send_deadline: bool,
    seconds: float,
    factors: Iterable[float] = FACTORS,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Run]:
    """A run at each factor of `r`.

    Args:
        send_deadline: in a header, if the server knows one.
    """
    runs: list[Run] = []
    for factor in factors:
        spec = Spec(
            port=target.port,
            path=target.path,
            folder=str(pool.folder),
            rate=min(factor * r, MAX_RATE),
            seconds=seconds,
            deadline=deadline,
            send_deadline=send_deadline and target.takes_deadlines,
            connections=CONNECTIONS,
            after_rate=AFTER_LOAD * r,
            after_seconds=AFTER_SECONDS if factor > 1 else 0,
            tolerance=target.tolerance,
            seed=len(runs),
        )
        timeout = 3 * seconds + AFTER_SECONDS + deadline + 90
        with (
            watch_memory(target.pid) as memory,
            probing(target.port, target.live) as live,
            probing(target.port, target.ready) as ready,
        ):
            result = generate(spec, "bench.overload.generator", timeout)
        probes = {
            "count": len(live.statuses),
            "failed": live.failed,
            "slowest_ms": 1000 * live.slowest,
            "ready_flaps": ready.flaps,
        }
        mib = asdict(memory)
        seconds_to_recover = _recovery(
            result["after"], runs[0].result if runs else None
        )
        run = Run(target.name, deadline, factor, spec.rate, result, probes, mib, seconds_to_recover)  # fmt: skip
        runs.append(run)
        goodput = result["goodput"]
        progress(
            f"{target.name}: {factor:g} R = {spec.rate:.0f}/s: goodput {goodput:.0f}"
        )
        _settle(target)
    return runs


def _settle(target: Target) -> None:
    """Wait until probes respond fast again."""
    deadline, fast = time.monotonic() + SETTLE_SECONDS, 0
    while fast < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
        start = time.monotonic()
        alive = probe(target.port, target.live) == 200
        fast = fast + 1 if alive and time.monotonic() < start + 0.1 else 0


def _recovery(windows: list[dict], before: dict | None) -> float | None:
    """Seconds after which every window is as before the overload."""
    if not windows or not before or not before["accepted_ms"]:
        return None
    limit = max(RECOVERED * before["accepted_ms"]["p99"], FLOOR_MS)
    recovered = [
        w["good"] >= 0.99 * w["sent"] and w["ms"] and w["ms"]["p99"] <= limit
        for w in windows
    ]
    if not recovered[-1]:
        return None
    bad = [place for place, fine in enumerate(recovered) if not fine]
    return WINDOW * (bad[-1] + 1 if bad else 0)
