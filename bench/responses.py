"""Recorded responses: their correctness and latency.

They are kept as bytes during a run, and parsed when it is over.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

DISCONNECTED = 0  # in place of a status


class Record(NamedTuple):
    """A request and its response; times of `time.perf_counter`."""

    place: int  # in the pool
    sent: float  # when it was due
    done: float
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """The expected responses to a pool."""

    probabilities: list[np.ndarray]  # [1, C] or [T, C] each
    short: np.ndarray  # [N] bool

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        with np.load(folder / "answers.npz") as file:
            rows, steps, short = file["answers"], file["lengths"], file["short"]
        if len(rows) == len(steps):
            return cls(list(rows[:, None]), short)
        return cls(np.split(rows, np.cumsum(steps)[:-1]), short)

    def difference(self, place: int, body: bytes) -> float:
        """The largest error of a probability; infinite for another shape."""
        try:
            rows = np.array(_probabilities(orjson.loads(body)), np.float32)
        except (ValueError, KeyError, IndexError, TypeError):
            return math.inf
        expected = self.probabilities[place]
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.shape != expected.shape or not np.isfinite(rows).all():
            return math.inf
        return float(np.abs(rows - expected).max())


def _probabilities(response: Any) -> Any:
    """The probabilities of the one sequence: this service's are in `predictions`, the
    FastAPI and LitServe peers' a member, BentoML's a list."""
    if isinstance(response, list):
        (prediction,) = response
        return prediction
    if "predictions" in response:
        (prediction,) = response["predictions"]
        return prediction["probabilities"]
    return response["probabilities"]


def correct_records(
    records: list[Record], reference: Reference, tolerance: float
) -> tuple[list[Record], dict[str, Any]]:
    """The records with correct responses, and the statuses and errors of all."""
    known: dict[tuple[int, bytes], float] = {}
    correct, worst, wrong = [], 0.0, 0
    for record in records:
        if record.status != 200:
            continue
        key = record.place, record.body
        if key not in known:
            known[key] = reference.difference(*key)
        worst = max(worst, known[key])
        if known[key] <= tolerance:
            correct.append(record)
        else:
            wrong += 1
    statuses = Counter(str(record.status) for record in records)
    return correct, {"statuses": dict(statuses), "wrong": wrong, "worst": worst}


def latencies(records: list[Record]) -> dict[str, float] | None:
    """Percentiles of the latency in milliseconds."""
    return percentiles([record.done - record.sent for record in records])


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Percentiles in milliseconds, by the nearest rank."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    ranks = {n: ordered[math.ceil(len(ordered) * n / 100) - 1] for n in (50, 90, 99)}
    return {f"p{n}": 1000 * value for n, value in ranks.items()}
