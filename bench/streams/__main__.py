"""How many concurrent streams a server sustains: this service and a handwritten one.

    python -m bench.streams

Every stream sends a frame at a steady rate. For each server the largest number of
streams is found for which every frame is answered and the p99 latency stays within a
limit; servers take turns on this machine's cores, together with the generator. The
handwritten server is measured in two forms: a process for each core with one engine
thread, and one process with all threads.
"""

import argparse
import re
import sys
import urllib.request
from pathlib import Path

from bench.environment import CORES, ROOT, describe_machine, parser
from bench.load_generator import generate
from bench.servers import Server, free_port, unrolled
from bench.serving.competitors import UVICORN
from bench.streams.generator import Spec
from model.bundle import bundle

OURS = "Unrolled"
GROWTH = 1.2  # from one number of streams to the next
FAILURES = 2  # in a row, which end a search
SERVERS = ["ours", "naive", "naive-threads"]


def flags() -> argparse.ArgumentParser:
    command = parser("bench.streams", __doc__)
    add = command.add_argument
    add("--bundle", type=Path, default=ROOT / "bundles" / "letters-live" / "1")
    add("--rate", type=float, default=10, help="frames a second of each stream")
    add("--streams", type=int, default=500, help="of the first run of each server")
    add("--most", type=int, default=10_000, help="streams")
    add("--limit", type=float, default=50, help="of the p99 latency, in milliseconds")
    add("--seconds", type=float, default=4, help="of a run")
    add("--turns", type=int, default=3, help="runs of each number, of which the median")
    add("--servers", nargs="+", choices=SERVERS, default=SERVERS)
    add("--only", action="store_true", help="the first number of streams only")
    return command


def make_server(name: str, options: argparse.Namespace) -> Server:
    if name == "ours":
        settings = {"log_level": "error", "max_streams": options.most}
        server = unrolled(options.bundle, OURS, **settings)
        model = bundle.read(options.bundle).metadata.name
        server.path = f"/stream?model={model}"
        return server
    processes, threads = (CORES, 1) if name == "naive" else (1, CORES)
    port = free_port()
    app = ["bench.streams.handwritten_server:app", "--port", str(port)]
    command = [sys.executable, *UVICORN, *app, "--workers", str(processes)]
    environment = {
        "ONNX": str(options.bundle / bundle.NETWORK),
        "THREADS": str(threads),
    }
    title = f"handwritten, {processes} process{'es' * (processes > 1)}"
    return Server(title, command, port, "/ready", "/stream", environment, ROOT)


def run(server: Server, options: argparse.Namespace, streams: int, seed: int) -> dict:
    """The generator's result, and the mean batch size of our engine."""
    spec = Spec(
        port=server.port,
        path=server.path,
        bundle=str(options.bundle),
        streams=streams,
        rate=options.rate,
        seconds=options.seconds,
        seed=seed,
    )
    before, cpu = _batches(server), server.cpu_seconds
    result = generate(spec, "bench.streams.generator")
    result["cores"] = (server.cpu_seconds - cpu) / (options.seconds + 1)
    after = _batches(server)
    if after and after[1] > before[1]:
        result["batch_size"] = (after[0] - before[0]) / (after[1] - before[1])
    return result


def _batches(server: Server) -> tuple[float, float] | None:
    """Rows and calls of our engine so far."""
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
    """The median of a few runs."""
    runs = [run(server, options, streams, seed) for seed in range(options.turns)]
    runs.sort(key=lambda result: result["ms"]["p99"] if result["ms"] else 1e9)
    return runs[len(runs) // 2]


def is_sustained(result: dict, limit: float) -> bool:
    correct = not (result["lost"] or result["wrong"])
    return correct and result["ms"] is not None and result["ms"]["p99"] <= limit


def line(streams: int, result: dict, limit: float) -> str:
    ms, lag = result["ms"] or {}, result["lag_ms"] or {}
    times = " ".join(f"{ms.get(p, float('nan')):8.1f}" for p in ("p50", "p90", "p99"))
    state = "yes" if is_sustained(result, limit) else "no"
    if result["wrong"] or result["lost"]:
        state += f" ({result['wrong']} wrong, {result['lost']} late)"
    batch = f"{result['batch_size']:5.1f}" if "batch_size" in result else "    -"
    figures = f"{lag.get('p99', 0):7.1f} {result['cores']:6.2f} {batch}"
    return f"{streams:8} {times} {figures}   {state}"


def capacity(server: Server, options: argparse.Namespace) -> int:
    """The largest number of streams that it sustains."""
    best, failures, streams = 0, 0, options.streams
    while failures < FAILURES and streams <= options.most:
        result = measure(server, options, streams)
        print(line(streams, result, options.limit), flush=True)
        if is_sustained(result, options.limit):
            best, failures = streams, 0
        else:
            failures += 1
        if options.only:
            break
        streams = round(streams * GROWTH)
    return best


def main() -> None:
    options = flags().parse_args()
    describe_machine()
    print(f"{options.bundle}, {options.rate:g} frames a second and stream")
    capacities: dict[str, int] = {}
    for name in options.servers:
        with make_server(name, options) as server:
            print(f"\n{server.name}")
            print(
                " streams      p50      p90      p99 lag p99  cores batch   sustained"
            )
            capacities[server.name] = capacity(server, options)
    print()
    ours = capacities.get(OURS)
    for name, streams in capacities.items():
        ratio = f" (ours {ours / streams:.2f}x)" if ours and streams else ""
        print(f"{name:24} {streams:6} streams within {options.limit:g} ms{ratio}")


if __name__ == "__main__":
    main()
