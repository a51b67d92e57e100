"""What came back: whether it is right, and how long it took.

Answers are kept as bytes and looked at here, when the time that counts is over.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson


class Record(NamedTuple):
    """A request and its answer; times of `time.perf_counter`."""

    place: int  # in the pool
    begun: float  # when it was to be sent
    done: float
    status: int  # 0: the server hung up
    body: bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """The right answers of a pool."""

    answers: list[np.ndarray]  # [1, C] or [T, C] each
    short: np.ndarray  # [N] bool

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        with np.load(folder / "answers.npz") as file:
            answers, steps, short = file["answers"], file["lengths"], file["short"]
        if len(answers) == len(steps):
            return cls(list(answers[:, None]), short)
        return cls(np.split(answers, np.cumsum(steps)[:-1]), short)

    def difference(self, place: int, body: bytes) -> float:
        """Of the probability that is most wrong; infinite where the answer has
        another shape."""
        try:
            rows = np.array(_probabilities(orjson.loads(body)), np.float32)
        except (ValueError, KeyError, IndexError, TypeError):
            return math.inf
        right = self.answers[place]
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.shape != right.shape or not np.isfinite(rows).all():
            return math.inf
        return float(np.abs(rows - right).max())


def _probabilities(answer: Any) -> Any:
    """Of the one sequence, as each server writes it: ours in `predictions`, the
    FastAPI and LitServe peers as a member, BentoML as a list of one."""
    if isinstance(answer, list):
        (only,) = answer
        return only
    if "predictions" in answer:
        (only,) = answer["predictions"]
        return only["probabilities"]
    return answer["probabilities"]


def judge(
    records: list[Record], reference: Reference, tolerance: float
) -> tuple[list[Record], dict[str, Any]]:
    """The records whose answers are right, and what there is to say of all."""
    known: dict[tuple[int, bytes], float] = {}
    right, worst, wrong = [], 0.0, 0
    for record in records:
        if record.status != 200:
            continue
        key = record.place, record.body
        if key not in known:
            known[key] = reference.difference(*key)
        difference = known[key]
        worst = max(worst, difference)
        if difference <= tolerance:
            right.append(record)
        else:
            wrong += 1
    statuses = Counter(str(record.status) for record in records)
    return right, {"statuses": dict(statuses), "wrong": wrong, "worst": worst}


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Milliseconds, by the nearest rank."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    ranks = {n: ordered[math.ceil(len(ordered) * n / 100) - 1] for n in (50, 90, 99)}
    return {f"p{n}": 1000 * value for n, value in ranks.items()}
