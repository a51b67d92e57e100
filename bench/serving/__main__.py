"""Measure the servers by turns and print what they answered.

    python -m bench.serving --litserve PYTHON --bentoml PYTHON

Run it from the project's folder, in its environment with the requirements to train.
LitServe and BentoML live in environments of their own, each with onnxruntime, orjson,
uvloop and httptools; without one, that peer is left out.

Of each network all servers are started; then, turn by turn, each is asked in every
cell while the others are stopped. Figures are medians over the turns, and only right
answers count.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import machine, networks, workloads
from bench.servers import Server, Unavailable
from bench.serving import competitors, plan, table
from bench.serving.plan import Cell, Run

SATURATION = 32  # connections that keep every core busy


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
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
    add(
        "--servers", nargs="+", choices=competitors.SERVERS, default=competitors.SERVERS
    )
    add("--connections", nargs="+", type=int, default=[1, 8, SATURATION])
    add("--rates", nargs="*", type=int, default=[100], help="of the open loop, on W4")
    add("--turns", type=int, default=3)
    add("--seconds", type=float, default=3, help="of a run; twice in the open loop")
    add("--quick", action="store_true", help="one network, W2 and W4, one turn")
    add("--json", type=Path, metavar="FILE", help="where all figures go")
    add("--cache", type=Path, default=networks.CACHE, help="where networks are kept")
    return parser


def main() -> None:
    # Told to end, it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = flags().parse_args()
    if options.quick:
        options.networks, options.workloads = options.networks[:1], ["W2", "W4"]
        options.connections, options.turns, options.seconds = [1, SATURATION], 1, 1.5
    described = machine.describe()
    print("{cores} cores, {processor}, load {load:.2f}".format(**described))
    pythons, found = _interpreters(options)
    chosen = [competitors.SERVERS[name] for name in options.servers]
    chosen = [name for name in chosen if pythons.get(name, "ours")]
    folder = networks.folder(options.cache)
    cells = plan.cells(
        options.networks, options.workloads, options.connections, options.rates
    )
    runs: list[Run] = []
    try:
        for bundle in dict.fromkeys(cell.bundle for cell in cells):
            own = [cell for cell in cells if cell.bundle == bundle]
            servers = competitors.servers(folder, bundle, chosen, pythons)
            runs += _bundle(folder, own, servers, options)
    finally:
        print(*table.lines(runs, cells, chosen), sep="\n")
        if options.json:
            figures = {
                "machine": described,
                "versions": found,
                "seconds": options.seconds,
                "runs": [asdict(run) for run in runs],
            }
            options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _interpreters(options) -> tuple[dict[str, str | None], dict[str, dict]]:
    """The interpreter of each peer that isn't beside ours, None where it can't be
    compared; and the versions of what each has."""
    found = {"ours": machine.versions(sys.executable)}
    pythons: dict[str, str | None] = {}
    for key in ("litserve", "bentoml"):
        if key not in options.servers:
            continue
        name, python = competitors.SERVERS[key], getattr(options, key)
        versions = machine.versions(python) if python else {}
        pythons[name] = python if key in versions else None
        if key in versions:
            found[name] = versions
        else:
            reason = f"{python} has none" if python else f"no --{key} PYTHON was given"
            print(f"left out: {name}, {reason}")
    for name, versions in found.items():
        print(f"{name}:", ", ".join(f"{k} {v}" for k, v in versions.items()))
    return pythons, found


def _bundle(
    folder: Path, cells: list[Cell], servers: list[Server], options
) -> list[Run]:
    """All runs over one bundle."""
    runs: list[Run] = []
    try:
        able = _started(servers)
        for turn in range(options.turns):
            for cell in cells:
                rate = cell.share * _saturation(runs) if cell.share else cell.rate
                if cell.open and not rate:
                    _tell(f"left out: {cell.text}, as ours was not measured")
                    continue
                first = turn % max(len(able), 1)
                for server in able[first:] + able[:first]:
                    server.resume()
                    run = plan.measure(
                        server,
                        cell,
                        folder,
                        turn=turn,
                        seconds=options.seconds,
                        rate=rate,
                    )
                    server.pause()
                    runs.append(run)
                    answered = run.result.get("rate", 0)
                    where = f"{cell.bundle} {cell.workload} {cell.text} {server.name}"
                    _tell(f"turn {turn + 1}: {where}: {answered:.1f}/s")
    finally:
        for server in servers:
            server.stop()
    return runs


def _started(servers: list[Server]) -> list[Server]:
    """Those that serve, stopped until their turn."""
    able = []
    for server in servers:
        try:
            server.start()
            server.wait()
        except (Unavailable, OSError) as error:
            print(f"left out: {server.name}, {error}")
            continue
        server.pause()
        able.append(server)
    return able


def _saturation(runs: list[Run]) -> float:
    """What ours answers in the closed loop, in the first turn."""
    for run in runs:
        cell = run.cell
        if run.server in competitors.OURS and (cell.workload, cell.connections) == (
            "W4",
            SATURATION,
        ):
            return run.result.get("rate", 0)
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - begun:.0f} s")
