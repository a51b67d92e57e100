"""Goodput of this service and a plain one at 0.5 to 10 times their capacity.

    python -m bench.overload --json FILE --plot FILE

The capacity R is a server's rate in a closed loop of 32 connections. Then requests
arrive at multiples of R (Poisson), and each client disconnects at its deadline: later
responses do not count. This service gets the shorter deadline in a header; the longer
one is its own. Both servers are probed, as by an orchestrator. One machine carries
servers and generator.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bench import networks, workloads
from bench.environment import describe_machine, parser, progress, versions
from bench.overload import report, runs
from bench.servers import Server, ServerUnavailable
from bench.serving import competitors

OWN_DEADLINE = 10.0  # UNROLLED_REQUEST_SECONDS
LIVE = {"tensorflow": "/ready", "lean": "/ready"}  # their only probe


def flags() -> argparse.ArgumentParser:
    command = parser("bench.overload", __doc__)
    add = command.add_argument
    add("--network", default="lstm", choices=["lstm", "gru", "small"])
    add("--workload", default="W2", choices=workloads.NAMES)
    add("--servers", nargs="+", default=["float32", "tensorflow"])
    add("--deadlines", nargs="+", type=float, default=[1.0, OWN_DEADLINE])
    add("--factors", nargs="+", type=float, default=list(runs.FACTORS))
    add("--seconds", type=float, default=10, help="of a run")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--plot", type=Path, metavar="FILE", help="goodput by offered load, PNG")
    add("--cache", type=Path, default=networks.CACHE)
    return command


def main() -> None:
    options = flags().parse_args()
    machine = describe_machine()
    folder = networks.folder(options.cache)
    pool = workloads.load(folder, options.network, options.workload)
    results: list[runs.Run] = []
    capacities: dict[str, float] = {}
    try:
        for key in options.servers:
            names = [competitors.SERVERS[key]]
            (server,) = competitors.servers(folder, pool.network, names, {})
            try:
                with server:
                    results += _measure(server, key, pool, options, capacities)
            except ServerUnavailable as error:
                print(f"left out: {server.name}, {error}")
    finally:
        if results:
            print(*report.lines(results, capacities), sep="\n")
            if options.plot:
                report.plot(results, capacities, options.plot)
            if options.json:
                figures = {
                    "machine": machine,
                    "versions": versions(sys.executable),
                    "capacities": capacities,
                    "runs": [asdict(run) for run in results],
                }
                options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _measure(
    server: Server,
    key: str,
    pool: workloads.Workload,
    options: argparse.Namespace,
    capacities: dict[str, float],
) -> list[runs.Run]:
    """All runs of a server."""
    target = runs.Target(
        server.name,
        server.pid,
        server.port,
        server.path or pool.path,
        LIVE.get(key, "/livez"),
        server.ready,
        takes_deadlines=server.name in competitors.OURS,
        tolerance=server.tolerance,
    )
    r = capacities[server.name] = runs.capacity(target, pool, options.seconds)
    progress(f"{server.name}: R = {r:.0f}/s")
    results = []
    for deadline in options.deadlines:
        results += runs.measure(
            target,
            pool,
            r,
            deadline=deadline,
            send_deadline=deadline < OWN_DEADLINE,
            seconds=options.seconds,
            factors=options.factors,
            progress=progress,
        )
    return results


if __name__ == "__main__":
    main()
