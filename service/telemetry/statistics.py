"""A model's statistics, as Triton's statistics extension shows them.

Counts and nanoseconds since the model was loaded, of requests of every kind, including
the messages of streams. `execution_count` counts engine calls: a sequence may take part
in several, each of which advances it by a few steps.
"""

import time
from typing import Any


class Duration:
    """A count, and the total time."""

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
    """The statistics of one model version."""

    def __init__(self) -> None:
        self._durations = {name: Duration() for name in REQUEST}
        self._batches: dict[int, Duration] = {}  # engine calls by batch size
        self._inferences = self._executions = 0
        self._last_inference = 0  # milliseconds since 1970

    def record_success(
        self, rows: int, read: float, queue: float, infer: float, write: float
    ) -> None:
        """Count an answered request of so many sequences; the times are in seconds."""
        durations = self._durations
        durations["success"].add(read + queue + infer + write)
        durations["compute_input"].add(read)
        durations["queue"].add(queue)
        durations["compute_infer"].add(infer)
        durations["compute_output"].add(write)
        self._inferences += rows
        self._last_inference = int(1000 * time.time())

    def record_failure(self, seconds: float) -> None:
        """Count a request that failed after so many seconds."""
        self._durations["fail"].add(seconds)

    def record_execution(self, rows: int, seconds: float) -> None:
        """Count an engine call with a batch of so many sequences."""
        self._executions += 1
        duration = self._batches.get(rows)
        if duration is None:
            duration = self._batches[rows] = Duration()
        duration.add(seconds)

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """An element of `model_stats`."""
        durations = {key: value.as_dict() for key, value in self._durations.items()}
        batches = [
            {
                "batch_size": rows,
                "compute_input": {"count": duration.count, "ns": 0},
                "compute_infer": duration.as_dict(),
                "compute_output": {"count": duration.count, "ns": 0},
            }
            for rows, duration in sorted(self._batches.items())
        ]
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_inference,
            "inference_count": self._inferences,
            "execution_count": self._executions,
            "inference_stats": durations,
            "batch_stats": batches,
            "memory_usage": [],
            "response_stats": {},
        }
