"""How long callers wait, by how busy the replicas are and how many there are.

    python -m bench.cluster.replica_simulation
    python -m bench.cluster.replica_simulation --capacity 83000 --alone 31000 --replicas 1 4 16

A simulation, with service times as they were measured: a replica computes `capacity`
steps a second, shared by the sequences that it has, of which one alone gets `alone` (the
lanes of the scheduler are a processor-sharing queue: Kleinrock, Queueing Systems II,
chapter 4). Sequences come as a Poisson process, of lengths uniform from 1 to `longest`,
and go to the replica with the fewest under way, or to any (as a Service of Kubernetes
has it). The network between is not counted.
"""

import argparse
import heapq
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (50, 99)


@dataclass
class Replica:
    """A server that shares its time: `done` is what each sequence has got so far, so that
    one is ready when `done` reaches what it was plus its steps."""

    capacity: float  # steps a second
    alone: float
    done: float = 0.0
    at: float = 0.0
    jobs: list[tuple[float, float]] = field(default_factory=list)  # (ready at, came at)

    @property
    def rate(self) -> float:
        """Steps a second that each sequence gets."""
        return min(self.alone, self.capacity / len(self.jobs))

    def advance(self, now: float) -> None:
        if self.jobs:
            self.done += (now - self.at) * self.rate
        self.at = now

    def next_end(self) -> float:
        return self.at + (self.jobs[0][0] - self.done) / self.rate

    def add(self, now: float, steps: int) -> None:
        self.advance(now)
        heapq.heappush(self.jobs, (self.done + steps, now))


def simulate(
    replicas: int,
    utilisation: float,
    *,
    capacity: float,
    alone: float,
    longest: int,
    count: int,
    least: bool,
    seed: int = 0,
) -> np.ndarray:
    """Seconds that each sequence took, without the first tenth of them.

    Args:
        utilisation: what comes, as a share of what all replicas can compute.
        least: each goes to the replica with the fewest under way; else to any.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    rate = utilisation * replicas * capacity / lengths.mean()
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    anyone = rng.integers(replicas, size=count)
    all_of_them = [Replica(capacity, alone) for _ in range(replicas)]
    took: list[float] = []

    def finish(one: Replica, until: float) -> None:
        while one.jobs and (end := one.next_end()) <= until:
            one.advance(end)
            _, came = heapq.heappop(one.jobs)
            took.append(end - came)

    for now, steps, chosen in zip(
        arrivals.tolist(), lengths.tolist(), anyone.tolist(), strict=True
    ):
        for one in all_of_them if least else (all_of_them[chosen],):
            finish(one, now)
        if least:
            one = min(all_of_them, key=lambda replica: len(replica.jobs))
        else:
            one = all_of_them[chosen]
        one.add(now, steps)
    for one in all_of_them:
        finish(one, float("inf"))
    return np.array(took[count // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capacity", type=float, default=83_000, help="steps/s")
    parser.add_argument("--alone", type=float, default=31_000, help="steps/s")
    parser.add_argument("--longest", type=int, default=100, help="steps")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument(
        "--utilisation", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
    )
    parser.add_argument("--count", type=int, default=60_000, help="sequences")
    options = parser.parse_args()
    for least in (True, False):
        print("to the one with the fewest under way" if least else "to any replica")
        print("milliseconds, median / 99th percentile")
        heads = ["busy", *(f"{r} replicas" for r in options.replicas)]
        print(" ".join(f"{head:>16}" for head in heads))
        for share in options.utilisation:
            cells = []
            for replicas in options.replicas:
                seconds = simulate(
                    replicas,
                    share,
                    capacity=options.capacity,
                    alone=options.alone,
                    longest=options.longest,
                    count=options.count,
                    least=least,
                )
                low, high = 1000 * np.percentile(seconds, PERCENTILES)
                cells.append(f"{low:.1f} / {high:.1f}")
            print(" ".join(f"{cell:>16}" for cell in [f"{share:.0%}", *cells]))


if __name__ == "__main__":
    main()
