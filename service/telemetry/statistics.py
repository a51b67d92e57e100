"""What Triton's statistics extension tells of a model.

Counts and nanoseconds since it was loaded, of requests of every kind (messages of a
stream among them). `execution_count` counts engine calls: a sequence may be in
several, each of which takes it on by a few steps.
"""

import time
from typing import Any


class Duration:
    """How often, and how long altogether."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = self.ns = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(1e9 * max(seconds, 0.0))

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


REQUEST = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


class Statistics:
    """Of one version of a model."""

    def __init__(self) -> None:
        self._durations = {name: Duration() for name in REQUEST}
        self._batches: dict[int, Duration] = {}  # engine calls by rows
        self._inferences = self._executions = 0
        self._last = 0  # milliseconds since 1970

    def record_success(
        self, rows: int, read: float, queue: float, infer: float, write: float
    ) -> None:
        """A request of so many rows has its answer, after so many seconds of each."""
        of = self._durations
        of["success"].add(read + queue + infer + write)
        of["compute_input"].add(read)
        of["queue"].add(queue)
        of["compute_infer"].add(infer)
        of["compute_output"].add(write)
        self._inferences += rows
        self._last = int(1000 * time.time())

    def record_failure(self, seconds: float) -> None:
        """A request was refused, after so many seconds."""
        self._durations["fail"].add(seconds)

    def record_execution(self, rows: int, seconds: float) -> None:
        """An engine call of so many rows."""
        self._executions += 1
        found = self._batches.get(rows)
        if found is None:
            found = self._batches[rows] = Duration()
        found.add(seconds)

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """An element of `model_stats`."""
        durations = {key: one.as_dict() for key, one in self._durations.items()}
        nothing = {"ns": 0}
        batches = [
            {
                "batch_size": rows,
                "compute_input": {"count": one.count, **nothing},
                "compute_infer": one.as_dict(),
                "compute_output": {"count": one.count, **nothing},
            }
            for rows, one in sorted(self._batches.items())
        ]
        return {
            "name": name,
            "version": version,
            "last_inference": self._last,
            "inference_count": self._inferences,
            "execution_count": self._executions,
            "inference_stats": durations,
            "batch_stats": batches,
            "memory_usage": [],
            "response_stats": {},
        }
