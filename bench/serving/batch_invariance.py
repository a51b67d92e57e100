"""Check that a response does not depend on its batch neighbours.

    python -m bench.serving.batch_invariance

Starts the service, sends 10,000 sequences of mixed lengths over 32 connections while a
share of the clients disconnect at random, and compares every response with ONNX
Runtime's to the sequence alone. Exits with 1 if any response is lost, refused or
wrong. `--port` names a running service with the bundle `lstm` of the cache's folder.
"""

import asyncio
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import uvloop

from bench import networks, workloads
from bench.environment import parser
from bench.http_connection import Connection
from bench.load_generator import ClosedLoop, Spec, load_requests
from bench.responses import Reference, correct_records
from bench.servers import ServerUnavailable
from bench.serving.competitors import ours


class DisconnectingLoop(ClosedLoop):
    """A closed loop in which a share of the clients disconnect, each at some moment of
    the time that the last response took, and reconnect."""

    def __init__(self, spec: Spec, requests: list[bytes], count: int, share: float):
        super().__init__(spec, requests)
        self.count, self.share = count, share
        self.disconnects = 0
        self.complete = asyncio.Event()
        self._random = random.Random(spec.seed)

    def on_idle(self, connection: Connection) -> None:
        if len(self.records) >= self.count:
            self.complete.set()
            self.ended = True
        super().on_idle(connection)
        if not self.ended and self._random.random() < self.share:
            last = self.records[-1] if self.records else None
            delay = self._random.random() * (last.done - last.sent if last else 0)
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._disconnect, connection, connection.sent)

    def _disconnect(self, connection: Connection, sent: float) -> None:
        """Disconnect, unless that request has been answered."""
        if connection.busy and connection.sent == sent and not self.ended:
            self.disconnects += 1
            connection.busy = False  # no response is expected
            connection.abort()
            self._on_lost(connection)

    async def run_all(self) -> None:
        await self.open()
        self.running = True
        for connection in list(self.connections):
            self.on_idle(connection)
        await self.complete.wait()
        await self.finish()
        self.close()


def check(spec: Spec, count: int, share: float) -> bool:
    """Send, compare, and print; True if every response is correct."""
    requests = load_requests(spec.path, spec.folder)
    loop = DisconnectingLoop(spec, requests, count, share)
    start = time.perf_counter()
    uvloop.run(loop.run_all())
    seconds = time.perf_counter() - start
    reference = Reference.load(Path(spec.folder))
    correct, result = correct_records(loop.records, reference, spec.tolerance)
    total = len(loop.records)
    print(f"{total} responses in {seconds:.0f} s, {loop.disconnects} disconnects")
    print(f"{len(correct)} as alone, within {spec.tolerance:.0e}", end="")
    print(f" (largest error {result['worst']:.1e}), {result['wrong']} wrong")
    for status, number in sorted(result["statuses"].items()):
        if status != "200":
            print(f"{number} x", "lost" if status == "0" else f"status {status}")
    return len(correct) == total


def main() -> None:
    command = parser("bench.serving.batch_invariance", __doc__)
    add = command.add_argument
    add("--network", choices=["lstm", "gru", "small"], default="lstm")
    add("--workload", choices=workloads.NAMES, default="W2")
    add("--answers", type=int, default=10_000, help="responses")
    add("--connections", type=int, default=32)
    add("--share", type=float, default=0.05, help="of the clients that disconnect")
    add("--tolerance", type=float, default=1e-5)
    add("--seed", type=int, default=0)
    add("--port", type=int, help="of a running service")
    add("--cache", type=Path, default=networks.CACHE)
    options = command.parse_args()
    folder = networks.folder(options.cache)
    pool = workloads.load(folder, options.network, options.workload)
    server = ours(folder, pool.network)
    try:
        with server if options.port is None else nullcontext():
            spec = Spec(
                port=options.port or server.port,
                path=pool.path,
                folder=str(pool.folder),
                seconds=0,
                connections=options.connections,
                tolerance=options.tolerance,
                seed=options.seed,
            )
            passed = check(spec, options.answers, options.share)
    except ServerUnavailable as error:
        sys.exit(f"the service {error}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
