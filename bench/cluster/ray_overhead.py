"""What Ray costs: the bare service and a replica of it on Ray Serve, by turns; behind
Ray's own proxy, and behind HAProxy, which Ray brings along.

    python -m bench.cluster.ray_overhead

All have the same network and as many workers; all are asked the same sequences of 100
steps by one connection, then by 32. Needs the extra `ray`.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace

import numpy as np

from bench import machine, networks, workloads
from bench.load_generator import Spec
from bench.servers import Server, free_port
from bench.serving.competitors import _ours
from bench.serving.protocols import native, run

FORM = "/classify, JSON"
CONNECTIONS = (1, 32)
HAPROXY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
PROXIES = {"Ray's proxy": {}, "Ray's HAProxy": HAPROXY}


def serve(port: int, bundles: str) -> None:
    """The service as one replica, on a Ray of its own; until it is stopped."""
    import ray
    from ray import serve as serving

    from service.ray import build

    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores, include_dashboard=False)
    serving.start(http_options={"host": "127.0.0.1", "port": port})
    args = {"bundles": bundles, "workers": str(cores), "log_level": "warning"}
    serving.run(build(args), blocking=True)


def on_ray(name: str, proxy: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "bench.cluster.ray_overhead", "--serve", str(port)]
    command += ["--bundles", str(networks.folder(networks.CACHE) / "bundles" / name)]
    environment = {"PYTHONPATH": str(networks.ROOT), "RAY_ADDRESS": "local"}
    return Server(
        proxy,
        command,
        port,
        "/readyz",
        environment=environment | PROXIES[proxy],
        folder=networks.ROOT,
    )


def compare(name: str, proxy: str, options: argparse.Namespace) -> None:
    folder = networks.folder(networks.CACHE)
    pool = workloads.load(folder, name, "W1")
    with np.load(pool.folder / "answers.npz") as file:
        right = file["answers"]
    sequences = [frames.astype(np.float32) for frames in workloads.sequences("W1")]
    requests = [native(frames, name) for frames in sequences]
    both = [_ours(folder, name, "Unrolled float32"), on_ray(name, proxy)]
    rates: dict[tuple[str, int], list[float]] = {}
    try:
        for server in both:
            server.start()
            server.wait()
        for turn in range(options.turns):
            for connections in CONNECTIONS:
                for server in both:
                    spec = Spec(
                        port=server.port,
                        path="",
                        folder="",
                        seconds=options.seconds,
                        connections=connections,
                    )
                    one = run(replace(spec, seed=turn), FORM, requests, right)
                    rates.setdefault((server.name, connections), []).append(one)
    finally:
        for server in both:
            server.stop()
    for connections in CONNECTIONS:
        bare, on = (
            statistics.median(rates[server.name, connections]) for server in both
        )
        print(
            f"{name:6}{connections:3} connections: bare {bare:6.0f} a second"
            f" ({1e3 * connections / bare:5.1f} ms)"
            f"  {proxy:13} {on:6.0f} ({1e3 * connections / on:5.1f} ms)"
            f"  {bare / on:5.2f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster.ray_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", default=["lstm", "small"])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bundles", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.bundles)
        return
    print(json.dumps(machine.describe()))
    for name in options.networks:
        for proxy in PROXIES:
            compare(name, proxy, options)


if __name__ == "__main__":
    main()
