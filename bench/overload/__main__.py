"""Ask this service and a plain one for 0.5 to 10 times what they can.

    python -m bench.overload --json FILE --plot FILE

R is what a server answers in a closed loop of 32 connections. Then, of both servers
in turn, requests come at multiples of R (Poisson), and each caller hangs up at its
deadline: what is answered later counts for nothing. This service is told the shorter
deadline in a header; of the longer one it knows by itself. Beside that, both are
probed, as an orchestrator would do. One machine carries servers and generator.
"""

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from bench import machine, networks, workloads
from bench.overload import report, series
from bench.servers import Server, Unavailable
from bench.serving import competitors

OWN_DEADLINE = 10.0  # UNROLLED_REQUEST_SECONDS
LIVE = {"tensorflow": "/ready"}  # it has no other


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", default="lstm", choices=["lstm", "gru", "small"])
    add("--workload", default="W2", choices=workloads.NAMES)
    add("--servers", nargs="+", default=["float32", "tensorflow"])
    add("--deadlines", nargs="+", type=float, default=[1.0, OWN_DEADLINE])
    add("--factors", nargs="+", type=float, default=list(series.FACTORS))
    add("--seconds", type=float, default=10, help="of a run")
    add("--json", type=Path, metavar="FILE", help="where all figures go")
    add("--plot", type=Path, metavar="FILE", help="goodput over what is offered, PNG")
    add("--cache", type=Path, default=networks.CACHE)
    return parser


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with the servers
    options = flags().parse_args()
    described = machine.describe()
    print("{cores} cores, {processor}, load {load:.2f}".format(**described))
    folder = networks.folder(options.cache)
    pool = workloads.load(folder, options.network, options.workload)
    made: list[series.Run] = []
    most: dict[str, float] = {}
    try:
        for key in options.servers:
            (server,) = competitors.servers(
                folder, pool.network, [competitors.SERVERS[key]], {}
            )
            try:
                server.start()
                server.wait()
                made += _asked(server, key, pool, options, most)
            except Unavailable as error:
                print(f"left out: {server.name}, {error}")
            finally:
                server.stop()
    finally:
        if made:
            print(*report.lines(made, most), sep="\n")
            if options.plot:
                report.plot(made, most, options.plot)
            if options.json:
                figures = {
                    "machine": described,
                    "versions": machine.versions(sys.executable),
                    "most": most,
                    "runs": [asdict(run) for run in made],
                }
                options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _asked(
    server: Server,
    key: str,
    pool: workloads.Workload,
    options: argparse.Namespace,
    most: dict[str, float],
) -> list[series.Run]:
    """All runs of a server."""
    target = series.Target(
        server.name,
        server.pid,
        server.port,
        server.path or pool.path,
        LIVE.get(key, "/livez"),
        server.ready,
        told=server.name in competitors.OURS,
        tolerance=server.tolerance,
    )
    most[server.name] = series.closed(target, pool, options.seconds)
    _tell(f"{server.name}: R = {most[server.name]:.0f}/s")
    made = []
    for deadline in options.deadlines:
        made += series.runs(
            target,
            pool,
            most[server.name],
            deadline=deadline,
            told=deadline < OWN_DEADLINE,
            seconds=options.seconds,
            factors=options.factors,
            tell=_tell,
        )
    return made


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
