"""Overhead of Ray Serve: the service alone and as a replica, in turns, behind Ray's own
proxy and behind the HAProxy that Ray ships.

    python -m bench.cluster.ray_overhead

All have the same network and as many workers; all get the same sequences of 100 steps
over one connection, then over 32. Needs the extra `ray`.
"""

import argparse
import statistics
import sys
from dataclasses import replace

from bench import networks
from bench.environment import CORES, ROOT, describe_machine, parser
from bench.load_generator import Spec
from bench.servers import Server, free_port
from bench.serving.competitors import ours
from bench.serving.protocols import native, pool, throughput

FORMAT = "/classify, JSON"
CONNECTIONS = (1, 32)
HAPROXY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
PROXIES = {"Ray's proxy": {}, "Ray's HAProxy": HAPROXY}


def serve(port: int, bundles: str) -> None:
    """Run the service as one replica, on a Ray of its own, until it is stopped."""
    import ray
    from ray import serve

    from service.ray import build

    ray.init(num_cpus=CORES, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = {"bundles": bundles, "workers": str(CORES), "log_level": "warning"}
    serve.run(build(settings), blocking=True)


def on_ray(name: str, proxy: str) -> Server:
    port = free_port()
    bundles = networks.folder(networks.CACHE) / "bundles" / name
    module = ["-m", "bench.cluster.ray_overhead"]
    command = [sys.executable, *module, "--serve", str(port), "--bundles", str(bundles)]
    environment = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"} | PROXIES[proxy]
    return Server(proxy, command, port, "/readyz", None, environment, ROOT)


def compare(name: str, proxy: str, options: argparse.Namespace) -> None:
    folder = networks.folder(networks.CACHE)
    sequences, expected = pool(folder, name)
    requests = [native(frames, name) for frames in sequences]
    rates: dict[tuple[str, int], list[float]] = {}
    with ours(folder, name) as service, on_ray(name, proxy) as replica:
        for turn in range(options.turns):
            for connections in CONNECTIONS:
                for server in (service, replica):
                    spec = Spec(server.port, "", "", options.seconds, connections=connections)  # fmt: skip
                    spec = replace(spec, seed=turn)
                    rate = throughput(spec, FORMAT, requests, expected)
                    rates.setdefault((server.name, connections), []).append(rate)
    for connections in CONNECTIONS:
        bare = statistics.median(rates[service.name, connections])
        behind = statistics.median(rates[proxy, connections])
        print(
            f"{name:6}{connections:3} connections: alone {bare:6.0f} a second"
            f" ({1e3 * connections / bare:5.1f} ms)"
            f"  {proxy:13} {behind:6.0f} ({1e3 * connections / behind:5.1f} ms)"
            f"  {bare / behind:5.2f}x",
            flush=True,
        )


def main() -> None:
    command = parser("bench.cluster.ray_overhead", __doc__)
    add = command.add_argument
    add("--networks", nargs="+", default=["lstm", "small"])
    add("--seconds", type=float, default=4, help="of a run")
    add("--turns", type=int, default=3)
    add("--serve", type=int, help=argparse.SUPPRESS)
    add("--bundles", help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.serve:
        serve(options.serve, options.bundles)
        return
    describe_machine()
    for name in options.networks:
        for proxy in PROXIES:
            compare(name, proxy, options)


if __name__ == "__main__":
    main()
