"""Which runs there are, and the figures of each."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine, networks, workloads
from bench.load_generator import Spec
from bench.servers import Server

OPEN_CONNECTIONS = 256
TURN_SECONDS = 2  # that a connection waits for its next request: servers hang up at 5
AGAIN = 2  # times more, when something held up the generator itself
STILL_MS = 100  # for which it may stand still
OTHERS = 0.2  # of a core, that other programs may use
SHARE = 0.6  # of our own saturation, in the open loop


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of a table."""

    network: str
    workload: str
    connections: int
    rate: float = 0  # requests a second of an open loop; 0: closed
    share: float = 0  # in its place: of what ours answers in the closed loop

    @property
    def bundle(self) -> str:
        return workloads.bundle(self.network, self.workload)

    @property
    def open(self) -> bool:
        return bool(self.rate or self.share)

    @property
    def text(self) -> str:
        if self.share:
            return f"{self.share:.0%} of our most"
        return f"{self.rate:g}/s" if self.rate else str(self.connections)


@dataclass(slots=True)
class Run:
    """A turn of a server in a cell."""

    server: str
    cell: Cell
    turn: int
    # As `load` has it, or `error` where it failed; `others`: the cores that programs
    # beside the server and the generator used.
    result: dict[str, Any]
    rate: float = 0  # of the open loop


def cells(
    chosen: list[str], names: list[str] | None, connections: list[int], rates: list[int]
) -> list[Cell]:
    """Every cell, by bundle.

    Args:
        names: workloads; None: all for the first network, W2 for the others.
        rates: of the open loop over W4, and `SHARE` besides.
    """
    found = []
    for place, network in enumerate(chosen):
        for name in names or (workloads.NAMES if place == 0 else ("W2",)):
            if workloads.bundle(network, name):
                found += [Cell(network, name, count) for count in connections]
                if name == "W4":
                    size = OPEN_CONNECTIONS
                    found += [Cell(network, name, size, rate=rate) for rate in rates]
                    if rates:
                        found.append(Cell(network, name, size, share=SHARE))
    return sorted(found, key=lambda cell: cell.bundle)


def measure(
    server: Server, cell: Cell, folder: Path, *, turn: int, seconds: float, rate: float
) -> Run:
    """Let the load generator ask a server."""
    pool = workloads.load(folder, cell.network, cell.workload)
    spec = Spec(
        port=server.port,
        path=server.path or pool.path,
        folder=str(pool.folder),
        # Rarer requests, and percentiles: twice the time.
        seconds=seconds * (2 if cell.open else 1),
        warm=min(0.7, seconds),
        connections=_connections(cell, rate),
        rate=rate,
        tolerance=server.tolerance,
        seed=turn,
    )
    for _ in range(1 + AGAIN):
        begun, used = time.perf_counter(), machine.busy_seconds()
        ours = server.cpu_seconds + _children_seconds()
        result = _load(spec)
        ours = server.cpu_seconds + _children_seconds() - ours
        used = machine.busy_seconds() - used - ours
        result["others"] = max(0, used) / (time.perf_counter() - begun)
        if result.get("still_ms", 0) < STILL_MS:
            break
    return Run(server.name, cell, turn, result, rate)


def _children_seconds() -> float:
    """CPU time of the load generators so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _load(spec: Spec) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", json.dumps(asdict(spec))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=networks.ROOT)
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = done.stderr.strip().splitlines() or ["the load generator failed"]
    return {"error": lines[-1]}


def _connections(cell: Cell, rate: float) -> int:
    return min(cell.connections, int(TURN_SECONDS * rate)) if rate else cell.connections


def median(runs: Iterable[Run], server: str, cell: Cell, *keys: str) -> float | None:
    """Of a figure over a server's turns; None where there is none."""
    values = []
    for run in runs:
        value: Any = run.result
        if run.server == server and run.cell == cell:
            for key in keys:
                value = value and value.get(key)
            if value is not None:
                values.append(value)
    return statistics.median(values) if values else None
