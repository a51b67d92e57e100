"""Is an answer what the sequence gets alone, whatever else the service computes?

    python -m bench.serving.batch_invariance

Starts the service, asks it 10,000 sequences of mixed lengths over 32 connections
while a share of the clients hang up at random, and compares every answer with ONNX
Runtime's to the sequence alone. Prints counts; exits with 1 if any answer is lost,
refused or other than it should be. `--port` takes a service that runs already and
serves the bundle `lstm` of the cache's folder.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from pathlib import Path

import uvloop

from bench import networks, workloads
from bench.answers import Reference, judge
from bench.http_connection import Connection, request
from bench.load_generator import Closed, Spec
from bench.servers import Unavailable
from bench.serving import competitors


class Leaving(Closed):
    """A closed loop in which a share of the clients hang up, each at some moment of
    the time that the last answer took, and come back on a new connection."""

    def __init__(self, spec: Spec, requests: list[bytes], count: int, share: float):
        super().__init__(spec, requests)
        self.count, self.share = count, share
        self.left = 0
        self.complete = asyncio.Event()
        self._random = random.Random(spec.seed)

    def free(self, connection: Connection) -> None:
        if len(self.records) >= self.count:
            self.complete.set()
            self.ended = True
        super().free(connection)
        if not self.ended and self._random.random() < self.share:
            last = self.records[-1] if self.records else None
            delay = self._random.random() * (last.done - last.begun if last else 0)
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._leave, connection, connection.begun)

    def _leave(self, connection: Connection, begun: float) -> None:
        """Hang up, unless that request has been answered."""
        if connection.busy and connection.begun == begun and not self.ended:
            self.left += 1
            connection.busy = False  # nothing is owed
            connection.abort()
            self._lost(connection)

    async def ask_all(self) -> None:
        await self.open()
        self.begun = True
        for connection in list(self.connections):
            self.free(connection)
        await self.complete.wait()
        await self.settle()
        self.close()


def check(spec: Spec, count: int, share: float) -> bool:
    """Ask, compare, print; whether all is as it should be."""
    lines = (Path(spec.folder) / "bodies.jsonl").read_bytes().splitlines()
    load = Leaving(spec, [request(spec.path, body) for body in lines], count, share)
    begun = time.perf_counter()
    uvloop.run(load.ask_all())
    seconds = time.perf_counter() - begun
    reference = Reference.load(Path(spec.folder))
    right, result = judge(load.records, reference, spec.tolerance)
    print(
        f"{len(load.records)} answers in {seconds:.0f} s, {load.left} clients hung up"
    )
    print(f"{len(right)} as alone, within {spec.tolerance:.0e}", end="")
    print(f" (the farthest {result['worst']:.1e}), {result['wrong']} other")
    for status, number in sorted(result["statuses"].items()):
        if status != "200":
            print(f"{number} x", "lost" if status == "0" else f"status {status}")
    return len(right) == len(load.records)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.batch_invariance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", choices=["lstm", "gru", "small"], default="lstm")
    add("--workload", choices=workloads.NAMES, default="W2")
    add("--answers", type=int, default=10_000)
    add("--connections", type=int, default=32)
    add("--share", type=float, default=0.05, help="of the clients, hanging up")
    add("--tolerance", type=float, default=1e-5)
    add("--seed", type=int, default=0)
    add("--port", type=int, help="of a service that runs already")
    add("--cache", type=Path, default=networks.CACHE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with the service
    options = parser.parse_args()
    folder = networks.folder(options.cache)
    pool = workloads.load(folder, options.network, options.workload)
    (server,) = competitors.servers(folder, pool.network, ["Unrolled float32"], {})
    if options.port is None:
        server.start()
    try:
        if options.port is None:
            server.wait()
        spec = Spec(
            port=options.port or server.port,
            path=pool.path,
            folder=str(pool.folder),
            seconds=0,
            connections=options.connections,
            tolerance=options.tolerance,
            seed=options.seed,
        )
        fine = check(spec, options.answers, options.share)
    except Unavailable as error:
        sys.exit(f"the service {error}")
    finally:
        server.stop()
    sys.exit(not fine)


if __name__ == "__main__":
    main()
