"""Simulated latency by the number of replicas and their utilisation.

    python -m bench.cluster.replica_simulation
    python -m bench.cluster.replica_simulation --capacity 83000 --alone 31000 --replicas 1 4 16

A replica computes `capacity` steps a second, shared by its sequences, of which one alone
gets `alone` (the scheduler's lanes are a processor-sharing queue: Kleinrock, Queueing
Systems II, chapter 4). Both are measured values. Sequences arrive as a Poisson process,
with lengths uniform from 1 to `longest`, and go to the replica with the fewest
outstanding, or to any (like a Kubernetes Service). Network latency is not included.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np

from bench.environment import parser

PERCENTILES = (50, 99)


@dataclass
class Replica:
    """A processor-sharing server: a sequence is ready when `done`, the steps that each
    sequence has received so far, has grown by its number of steps."""

    capacity: float  # steps a second
    sequence_rate: float
    done: float = 0.0
    now: float = 0.0
    jobs: list[tuple[float, float]] = field(default_factory=list)  # (ready, arrival)

    @property
    def rate(self) -> float:
        """Steps a second that each sequence gets."""
        return min(self.sequence_rate, self.capacity / len(self.jobs))

    def advance(self, now: float) -> None:
        if self.jobs:
            self.done += (now - self.now) * self.rate
        self.now = now

    def next_end(self) -> float:
        return self.now + (self.jobs[0][0] - self.done) / self.rate

    def add(self, now: float, steps: int) -> None:
        self.advance(now)
        heapq.heappush(self.jobs, (self.done + steps, now))

    def finish(self, end: float) -> list[float]:
        """The latencies of the sequences that are ready by then."""
        latencies = []
        while self.jobs and (now := self.next_end()) <= end:
            self.advance(now)
            _, arrival = heapq.heappop(self.jobs)
            latencies.append(now - arrival)
        return latencies


def simulate(
    replicas: int,
    utilisation: float,
    *,
    capacity: float,
    sequence_rate: float,
    longest: int,
    count: int,
    least: bool,
    seed: int = 0,
) -> np.ndarray:
    """Latencies in seconds, without the first tenth.

    Args:
        utilisation: the load as a share of all replicas' capacity.
        least: route to the replica with the fewest outstanding; else to any.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    rate = utilisation * replicas * capacity / lengths.mean()
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    places = rng.integers(replicas, size=count)
    servers = [Replica(capacity, sequence_rate) for _ in range(replicas)]
    latencies: list[float] = []
    for now, steps, place in zip(
        arrivals.tolist(), lengths.tolist(), places.tolist(), strict=True
    ):
        for server in servers if least else (servers[place],):
            latencies += server.finish(now)
        if least:
            server = min(servers, key=lambda replica: len(replica.jobs))
        else:
            server = servers[place]
        server.add(now, steps)
    for server in servers:
        latencies += server.finish(float("inf"))
    return np.array(latencies[count // 10 :])


def main() -> None:
    command = parser("bench.cluster.replica_simulation", __doc__)
    add = command.add_argument
    add("--capacity", type=float, default=83_000, help="steps/s of a replica")
    add(
        "--alone",
        dest="sequence_rate",
        type=float,
        default=31_000,
        help="steps/s of a sequence alone",
    )
    add("--longest", type=int, default=100, help="steps")
    add("--replicas", type=int, nargs="+", default=[1, 2, 8, 32])
    shares = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
    add("--utilisation", type=float, nargs="+", default=shares)
    add("--count", type=int, default=60_000, help="sequences")
    options = command.parse_args()
    for least in (True, False):
        print(
            "to the replica with the fewest outstanding" if least else "to any replica"
        )
        print("milliseconds, p50 / p99")
        heads = ["utilisation", *(f"{r} replicas" for r in options.replicas)]
        print(" ".join(f"{head:>16}" for head in heads))
        for share in options.utilisation:
            cells = [f"{share:.0%}"]
            for replicas in options.replicas:
                seconds = simulate(
                    replicas,
                    share,
                    capacity=options.capacity,
                    sequence_rate=options.sequence_rate,
                    longest=options.longest,
                    count=options.count,
                    least=least,
                )
                p50, p99 = 1000 * np.percentile(seconds, PERCENTILES)
                cells.append(f"{p50:.1f} / {p99:.1f}")
            print(" ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
