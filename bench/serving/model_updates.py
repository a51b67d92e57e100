"""What a change of version does to the requests that are answered meanwhile.

    python -m bench.serving.model_updates

Requests arrive at a steady rate (Poisson). In every other run new versions of the
network are put into the folder one after another; each is loaded aside, verified,
and takes the place of the one before. Both kinds of run have their turns at one
server; what is printed is the ratio of their percentiles, and whatever failed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import machine, networks, workloads
from bench.load_generator import Spec
from bench.servers import Server, free_port
from model.bundle import bundle

CONNECTIONS = 256


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.model_updates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", default="lstm", choices=networks.NETWORKS)
    add("--rate", type=float, default=600, help="requests a second")
    add("--every", type=float, default=0.5, help="seconds from one version to the next")
    add("--seconds", type=float, default=10, help="of a run")
    add("--turns", type=int, default=5, help="runs of each kind")
    return parser


def publish(root: Path, name: str, version: int) -> None:
    """The next version, as a training run would leave it: whole or not at all."""
    before, after = root / name / str(version - 1), root / name / str(version)
    partial = root / name / f".{version}"
    shutil.copytree(before, partial)
    marker = partial / bundle.MARKER
    about = json.loads(marker.read_text()) | {"version": str(version)}
    marker.write_text(json.dumps(about))
    partial.rename(after)


def load(port: int, name: str) -> float:
    """Have the service take it up; how many seconds that took."""
    begun = time.perf_counter()
    url = f"http://127.0.0.1:{port}/v2/repository/models/{name}/load"
    request = urllib.request.Request(url, b"", method="POST")
    with urllib.request.urlopen(request, timeout=60):
        return time.perf_counter() - begun


def measure(spec: Spec, swap: Any) -> dict[str, Any]:
    """A run of the load generator, with `swap()` called until it ends."""
    command = [sys.executable, "-m", "bench.load", json.dumps(asdict(spec))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=networks.ROOT
    ) as process:
        while process.poll() is None:
            swap()
        assert process.stdout is not None
        return json.loads(process.stdout.read())


def main() -> None:
    options = flags().parse_args()
    folder = networks.folder(networks.CACHE)
    pool = workloads.load(folder, options.network, "W2")
    name = pool.network
    runs: dict[str, list[dict[str, Any]]] = {"still": [], "swapping": []}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        root, version = Path(temporary), 1
        shutil.copytree(folder / "bundles" / name, root / name)
        port = free_port()
        command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        environment = {
            "UNROLLED_BUNDLES": str(root),
            "UNROLLED_LOG_LEVEL": "warning",
            "UNROLLED_ADMIN": "true",
            "UNROLLED_RELOAD_SECONDS": "0",
        }
        server = Server(
            "Unrolled", command, port, "/readyz", None, environment, networks.ROOT
        )
        server.start()
        try:
            server.wait()
            spec = Spec(
                port=port,
                path=pool.path,
                folder=str(pool.folder),
                seconds=options.seconds,
                connections=CONNECTIONS,
                rate=options.rate,
            )

            def swap() -> None:
                nonlocal version
                version += 1
                publish(root, name, version)
                seconds.append(load(port, name))
                shutil.rmtree(root / name / str(version - 1))
                time.sleep(max(0, options.every - seconds[-1]))

            for turn in range(options.turns):
                for kind in runs if turn % 2 else reversed(runs):
                    act = swap if kind == "swapping" else lambda: time.sleep(0.1)
                    runs[kind].append(measure(replace(spec, seed=turn), act))
        finally:
            server.stop()
    report(runs, seconds, options)


def report(runs: dict[str, list[dict]], seconds: list[float], options: Any) -> None:
    print(json.dumps(machine.describe()))
    for kind, of in runs.items():
        told = {n: [round(run["all"][n], 1) for run in of] for n in ("p50", "p99")}
        statuses = {}
        for run in of:
            for status, count in run["statuses"].items():
                statuses[status] = statuses.get(status, 0) + count
        print(f"{kind}: ms {told}, statuses {statuses}")
        print(f"  wrong answers: {sum(run['wrong'] for run in of)}")
    for n in ("p50", "p99"):
        ratios = [
            swapping["all"][n] / still["all"][n]
            for still, swapping in zip(*runs.values(), strict=True)
        ]
        print(f"{n}: {statistics.median(ratios):.2f}x while versions change")
    print(
        f"{len(seconds)} changes, each in {statistics.median(seconds):.2f} s"
        f" (at most {max(seconds):.2f})"
    )


if __name__ == "__main__":
    main()
