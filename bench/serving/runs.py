"""The cells of the comparison, and the runs of each server in a cell."""

import resource
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import workloads
from bench.environment import busy_seconds
from bench.load_generator import Spec, generate
from bench.servers import Server

OPEN_CONNECTIONS = 256
IDLE_SECONDS = 2  # between two requests of a connection: servers disconnect after 5
RETRIES = 2  # if the generator itself was stalled
STALLED_MS = 100
OTHER_CORES = 0.2  # that other programs may use
SHARE = 0.6  # of our capacity, in the open loop


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of a table."""

    network: str
    workload: str
    connections: int
    rate: float = 0  # requests a second of an open loop; 0: closed
    share: float = 0  # instead of a rate: of our rate in the closed loop

    @property
    def bundle(self) -> str:
        return workloads.bundle(self.network, self.workload)

    @property
    def open(self) -> bool:
        return bool(self.rate or self.share)

    @property
    def text(self) -> str:
        if self.share:
            return f"{self.share:.0%} of our capacity"
        return f"{self.rate:g}/s" if self.rate else str(self.connections)


@dataclass(slots=True)
class Run:
    """A turn of a server in a cell."""

    server: str
    cell: Cell
    turn: int
    # The generator's result, or `error`; `others`: cores used by other programs.
    result: dict[str, Any]
    rate: float = 0  # of the open loop


def cells(
    chosen: list[str], names: list[str] | None, connections: list[int], rates: list[int]
) -> list[Cell]:
    """Every cell, by bundle.

    Args:
        names: workloads; None: all for the first network, W2 for the others.
        rates: of the open loop over W4; `SHARE` is added.
    """
    result = []
    for place, network in enumerate(chosen):
        for name in names or (workloads.NAMES if place == 0 else ("W2",)):
            if not workloads.bundle(network, name):
                continue
            result += [Cell(network, name, count) for count in connections]
            if name == "W4" and rates:
                size = OPEN_CONNECTIONS
                result += [Cell(network, name, size, rate=rate) for rate in rates]
                result.append(Cell(network, name, size, share=SHARE))
    return sorted(result, key=lambda cell: cell.bundle)


def measure(
    server: Server, cell: Cell, folder: Path, *, turn: int, seconds: float, rate: float
) -> Run:
    """Let the load generator send requests to a server."""
    pool = workloads.load(folder, cell.network, cell.workload)
    connections = cell.connections
    if rate:
        connections = min(connections, int(IDLE_SECONDS * rate))
    spec = Spec(
        port=server.port,
        path=server.path or pool.path,
        folder=str(pool.folder),
        # Fewer requests in the open loop, and percentiles: twice the time.
        seconds=seconds * (2 if cell.open else 1),
        warm_up=min(0.7, seconds),
        connections=connections,
        rate=rate,
        tolerance=server.tolerance,
        seed=turn,
    )
    for _ in range(1 + RETRIES):
        start, busy = time.perf_counter(), busy_seconds()
        own = server.cpu_seconds + _children_seconds()
        try:
            result = generate(spec)
        except RuntimeError as error:
            result = {"error": str(error)}
        own = server.cpu_seconds + _children_seconds() - own
        busy = busy_seconds() - busy - own
        result["others"] = max(0, busy) / (time.perf_counter() - start)
        if result.get("stalled_ms", 0) < STALLED_MS:
            break
    return Run(server.name, cell, turn, result, rate)


def _children_seconds() -> float:
    """CPU time of all load generators so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def median(runs: Iterable[Run], server: str, cell: Cell, *keys: str) -> float | None:
    """The median of a figure over a server's turns, if there is one."""
    values = []
    for run in runs:
        value: Any = run.result
        if run.server == server and run.cell == cell:
            for key in keys:
                value = value and value.get(key)
            if value is not None:
                values.append(value)
    return statistics.median(values) if values else None
