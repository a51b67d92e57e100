"""Latency while new model versions are published.

    python -m bench.serving.model_updates

Requests arrive at a steady rate (Poisson). In every other run new versions of the
network are published one after another; each is loaded in the background, verified,
and replaces the last. Both kinds of runs take turns at one server; printed are the
ratios of their percentiles, and all failures.
"""

import json
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import networks, workloads
from bench.environment import ROOT, describe_machine, parser
from bench.load_generator import Spec, command
from bench.servers import unrolled
from model.bundle import bundle

CONNECTIONS = 256


def publish(root: Path, name: str, version: int) -> None:
    """Publish a copy of the last version as the next, atomically."""
    last, new = root / name / str(version - 1), root / name / str(version)
    partial = root / name / f".{version}"
    shutil.copytree(last, partial)
    marker = partial / bundle.MARKER
    metadata = json.loads(marker.read_text()) | {"version": str(version)}
    marker.write_text(json.dumps(metadata))
    partial.rename(new)


def load(port: int, name: str) -> float:
    """Make the service load it; the seconds that it took."""
    start = time.perf_counter()
    url = f"http://127.0.0.1:{port}/v2/repository/models/{name}/load"
    request = urllib.request.Request(url, b"", method="POST")
    with urllib.request.urlopen(request, timeout=60):
        return time.perf_counter() - start


def measure(spec: Spec, action: Callable[[], None]) -> dict[str, Any]:
    """A run of the load generator, with `action` called until it ends."""
    with subprocess.Popen(
        command(spec), stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        while process.poll() is None:
            action()
        assert process.stdout is not None
        return json.loads(process.stdout.read())


def main() -> None:
    arguments = parser("bench.serving.model_updates", __doc__)
    add = arguments.add_argument
    add("--network", default="lstm", choices=networks.NETWORKS)
    add("--rate", type=float, default=600, help="requests a second")
    add("--every", type=float, default=0.5, help="seconds between two versions")
    add("--seconds", type=float, default=10, help="of a run")
    add("--turns", type=int, default=5, help="runs of each kind")
    options = arguments.parse_args()
    describe_machine()
    folder = networks.folder(networks.CACHE)
    pool = workloads.load(folder, options.network, "W2")
    name = pool.network
    runs: dict[str, list[dict[str, Any]]] = {"steady": [], "updating": []}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        root, version = Path(temporary), 1
        shutil.copytree(folder / "bundles" / name, root / name)
        with unrolled(root, admin=True, reload_seconds=0) as server:
            spec = Spec(
                port=server.port,
                path=pool.path,
                folder=str(pool.folder),
                seconds=options.seconds,
                connections=CONNECTIONS,
                rate=options.rate,
            )

            def update() -> None:
                nonlocal version
                version += 1
                publish(root, name, version)
                seconds.append(load(server.port, name))
                shutil.rmtree(root / name / str(version - 1))
                time.sleep(max(0, options.every - seconds[-1]))

            actions = {"steady": lambda: time.sleep(0.1), "updating": update}
            for turn in range(options.turns):
                for kind in runs if turn % 2 else reversed(runs):
                    run = measure(replace(spec, seed=turn), actions[kind])
                    runs[kind].append(run)
    report(runs, seconds)


def report(runs: dict[str, list[dict]], seconds: list[float]) -> None:
    for kind, results in runs.items():
        ms = {n: [round(r["all"][n], 1) for r in results] for n in ("p50", "p99")}
        statuses = sum((Counter(run["statuses"]) for run in results), Counter())
        print(f"{kind}: ms {ms}, statuses {dict(statuses)}")
        print(f"  wrong responses: {sum(run['wrong'] for run in results)}")
    for n in ("p50", "p99"):
        pairs = zip(runs["steady"], runs["updating"], strict=True)
        ratios = [updating["all"][n] / steady["all"][n] for steady, updating in pairs]
        print(f"{n}: {statistics.median(ratios):.2f}x while versions change")
    middle, slowest = statistics.median(seconds), max(seconds)
    print(f"{len(seconds)} versions, each in {middle:.2f} s (at most {slowest:.2f})")


if __name__ == "__main__":
    main()
