"""Measure all servers in turns, and print their throughput and latency.

    python -m bench.serving --litserve PYTHON --bentoml PYTHON

Run it in the project's folder, in its environment with the packages for training.
LitServe and BentoML live in environments of their own, each with onnxruntime, orjson,
uvloop and httptools; without one, that peer is left out.

All servers of a network are started first; then, turn by turn, each is measured in
every cell while the others are paused. Figures are medians over the turns, and only
correct responses count.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import networks, workloads
from bench.environment import describe_machine, parser, progress, versions
from bench.servers import Server, started
from bench.serving import competitors, runs, table
from bench.serving.runs import Cell, Run

SATURATION = 32  # connections that keep every core busy


def flags() -> argparse.ArgumentParser:
    command = parser("bench.serving", __doc__)
    add = command.add_argument
    add("--litserve", metavar="PYTHON", help="interpreter that has LitServe")
    add("--bentoml", metavar="PYTHON", help="interpreter that has BentoML")
    shown = ["lstm", "gru", "small"]
    add("--networks", nargs="+", choices=shown, default=shown)
    add(
        "--workloads",
        nargs="+",
        choices=workloads.NAMES,
        help="default: all for the first network, W2 for the others",
    )
    names = list(competitors.SERVERS)
    add("--servers", nargs="+", choices=names, default=names)
    add("--connections", nargs="+", type=int, default=[1, 8, SATURATION])
    add("--rates", nargs="*", type=int, default=[100], help="of the open loop, on W4")
    add("--turns", type=int, default=3)
    add("--seconds", type=float, default=3, help="of a run; twice in the open loop")
    add("--quick", action="store_true", help="one network, W2 and W4, one turn")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--cache", type=Path, default=networks.CACHE, help="where networks are kept")
    return command


def main() -> None:
    options = flags().parse_args()
    if options.quick:
        options.networks, options.workloads = options.networks[:1], ["W2", "W4"]
        options.connections, options.turns, options.seconds = [1, SATURATION], 1, 1.5
    machine = describe_machine()
    pythons, installed = _interpreters(options)
    names = [competitors.SERVERS[name] for name in options.servers]
    names = [name for name in names if pythons.get(name, "ours")]
    folder = networks.folder(options.cache)
    cells = runs.cells(
        options.networks, options.workloads, options.connections, options.rates
    )
    results: list[Run] = []
    try:
        for bundle in dict.fromkeys(cell.bundle for cell in cells):
            own = [cell for cell in cells if cell.bundle == bundle]
            with started(
                competitors.servers(folder, bundle, names, pythons)
            ) as servers:
                _measure(folder, own, servers, options, results)
    finally:
        print(*table.lines(results, cells, names), sep="\n")
        if options.json:
            figures = {
                "machine": machine,
                "versions": installed,
                "seconds": options.seconds,
                "runs": [asdict(run) for run in results],
            }
            options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _interpreters(options) -> tuple[dict[str, str | None], dict[str, dict]]:
    """The interpreter of each peer in an environment of its own, None if there is none;
    and the versions installed in each environment."""
    installed = {"ours": versions(sys.executable)}
    pythons: dict[str, str | None] = {}
    for key in ("litserve", "bentoml"):
        if key not in options.servers:
            continue
        name, python = competitors.SERVERS[key], getattr(options, key)
        packages = versions(python) if python else {}
        pythons[name] = python if key in packages else None
        if key in packages:
            installed[name] = packages
        else:
            missing = f"{python} has none" if python else f"no --{key} PYTHON was given"
            print(f"left out: {name}, {missing}")
    for name, packages in installed.items():
        print(f"{name}:", ", ".join(f"{k} {v}" for k, v in packages.items()))
    return pythons, installed


def _measure(
    folder: Path, cells: list[Cell], servers: list[Server], options, results: list[Run]
) -> None:
    """Append all runs of the servers of one bundle."""
    own: list[Run] = []
    for turn in range(options.turns):
        for cell in cells:
            rate = cell.share * _our_capacity(own) if cell.share else cell.rate
            if cell.open and not rate:
                progress(f"left out: {cell.text}, as ours was not measured")
                continue
            first = turn % max(len(servers), 1)
            for server in servers[first:] + servers[:first]:
                server.resume()
                seconds = options.seconds
                run = runs.measure(server, cell, folder, turn=turn, seconds=seconds, rate=rate)  # fmt: skip
                server.pause()
                own.append(run)
                results.append(run)
                throughput = run.result.get("rate", 0)
                where = f"{cell.bundle} {cell.workload} {cell.text} {server.name}"
                progress(f"turn {turn + 1}: {where}: {throughput:.1f}/s")


def _our_capacity(results: list[Run]) -> float:
    """Our rate in the closed loop, in the first turn."""
    for run in results:
        cell = run.cell
        saturated = (cell.workload, cell.connections) == ("W4", SATURATION)
        if run.server in competitors.OURS and saturated:
            return run.result.get("rate", 0)
    return 0


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - start:.0f} s")
