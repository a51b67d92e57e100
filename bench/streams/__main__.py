"""How many streams each server keeps up with.

    python -m bench.streams

Every stream sends a frame at a steady rate. Of each server the number of streams is
found up to which all are answered and the 99th percentile from frame to answer stays
within a limit; the servers have their turns one after another, all on this machine's
cores, together with the generator. The naive server is measured in two forms: a
process for each core with an engine thread each, and one process with all threads.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from bench import machine
from bench.networks import ROOT
from bench.servers import Server, free_port
from bench.serving.competitors import CORES, FAST, QUIET
from model.bundle import bundle

OURS = "Unrolled"
MORE = 1.2  # from one number of streams to the next
LATE = 2  # runs in a row over the limit end a search


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.streams",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, default=ROOT / "bundles" / "letters-live" / "1")
    add("--rate", type=float, default=10, help="frames a second of each stream")
    add("--streams", type=int, default=500, help="of the first run of each")
    add("--most", type=int, default=10_000)
    add("--limit", type=float, default=50, help="milliseconds, of the 99th percentile")
    add("--seconds", type=float, default=4, help="of a run")
    add("--turns", type=int, default=3, help="runs of each number; their median counts")
    add("--servers", nargs="+", choices=["ours", "naive", "naive-threads"])
    add("--only", action="store_true", help="the first number of streams only")
    return parser


def servers(options: argparse.Namespace) -> list[Server]:
    chosen = options.servers or ["ours", "naive", "naive-threads"]
    made = {
        "ours": _ours(options),
        "naive": _naive(options, f"naive, {CORES} processes", CORES, 1),
        "naive-threads": _naive(options, "naive, one process", 1, CORES),
    }
    return [made[name] for name in chosen]


def _ours(options: argparse.Namespace) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    name = bundle.read(options.bundle).metadata.name
    return Server(
        OURS,
        [*command, "--bundles", str(options.bundle)],
        port,
        "/readyz",
        f"/stream?model={name}",
        {"UNROLLED_LOG_LEVEL": "error", "UNROLLED_MAX_STREAMS": str(options.most)},
        ROOT,
    )


def _naive(
    options: argparse.Namespace, name: str, processes: int, threads: int
) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.streams.handwritten_server:app"]
    return Server(
        name,
        [*command, "--port", str(port), "--workers", str(processes), *FAST, *QUIET],
        port,
        "/ready",
        "/stream",
        {"ONNX": str(options.bundle / bundle.NETWORK), "THREADS": str(threads)},
        ROOT,
    )


def run(server: Server, options: argparse.Namespace, streams: int, seed: int) -> dict:
    """What the generator says of a run, and our engine's figures during it."""
    spec = {
        "port": server.port,
        "path": server.path,
        "bundle": str(options.bundle),
        "streams": streams,
        "rate": options.rate,
        "seconds": options.seconds,
        "seed": seed,
    }
    command = [sys.executable, "-m", "bench.streams.generator", json.dumps(spec)]
    before, used = _counts(server), server.cpu_seconds
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(result.stdout)
    told["cores"] = (server.cpu_seconds - used) / (options.seconds + 1)
    after = _counts(server)
    if after and after[1] > before[1]:
        told["rows"] = (after[0] - before[0]) / (after[1] - before[1])
    return told


def _counts(server: Server) -> tuple[float, float] | None:
    """Rows and calls of the engine so far."""
    if server.name != OURS:
        return None
    url = f"http://127.0.0.1:{server.port}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    name = r"^unrolled_batch_rows_{}\{{.*\}} (\S+)$"
    rows, calls = (
        re.findall(name.format(kind), text, re.MULTILINE) for kind in ("sum", "count")
    )
    return sum(map(float, rows)), sum(map(float, calls))


def measure(server: Server, options: argparse.Namespace, streams: int) -> dict:
    """The run of the median, of a few."""
    runs = [run(server, options, streams, seed) for seed in range(options.turns)]
    runs.sort(key=lambda told: told["ms"]["p99"] if told["ms"] else 1e9)
    return runs[len(runs) // 2]


def kept_up(told: dict, limit: float) -> bool:
    right = not (told["lost"] or told["wrong"])
    return right and told["ms"] is not None and told["ms"]["p99"] <= limit


def line(streams: int, told: dict, limit: float) -> str:
    ms, lag = told["ms"] or {}, told["lag_ms"] or {}
    times = " ".join(f"{ms.get(p, float('nan')):8.1f}" for p in ("p50", "p90", "p99"))
    state = "yes" if kept_up(told, limit) else "no"
    if told["wrong"] or told["lost"]:
        state += f" ({told['wrong']} wrong, {told['lost']} late)"
    rows = f"{told['rows']:5.1f}" if "rows" in told else "    -"
    figures = f"{lag.get('p99', 0):7.1f} {told['cores']:6.2f} {rows}"
    return f"{streams:8} {times} {figures}   {state}"


def most(server: Server, options: argparse.Namespace) -> int:
    """The largest number of streams that it keeps up with."""
    best, late, streams = 0, 0, options.streams
    while late < LATE and streams <= options.most:
        told = measure(server, options, streams)
        print(line(streams, told, options.limit), flush=True)
        if kept_up(told, options.limit):
            best, late = streams, 0
        else:
            late += 1
        if options.only:
            break
        streams = round(streams * MORE)
    return best


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = flags().parse_args()
    print("{cores} cores, {processor}, load {load:.2f}".format(**machine.describe()))
    print(f"{options.bundle}, {options.rate:g} frames a second and stream")
    found: dict[str, int] = {}
    for server in servers(options):
        try:
            server.start()
            server.wait()
            print(f"\n{server.name}")
            print(" streams      p50      p90      p99 lag p99  cores  rows   kept up")
            found[server.name] = most(server, options)
        finally:
            server.stop()
    print()
    for name, streams in found.items():
        ours = found.get(OURS)
        ratio = f" (ours {ours / streams:.2f}x)" if ours and streams else ""
        print(f"{name:22} {streams:6} streams within {options.limit:g} ms{ratio}")


if __name__ == "__main__":
    main()
