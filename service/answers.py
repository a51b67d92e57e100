"""The service's answers as the client gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


class RequestError(Exception):
    """The service refused; its problem details as attributes."""

    def __init__(
        self, status: int, problem: Any, headers: Mapping[str, str], title: str
    ):
        """
        Args:
            problem: the JSON that came, if it was any.
            title: where that has none.
        """
        if not isinstance(problem, dict):
            problem = {}
        self.status = status
        self.type: str = problem.get("type", "about:blank")
        self.title: str = problem.get("title", title)
        self.detail: str = problem.get("detail", "")
        self.errors: list[dict[str, str]] = [
            e for e in problem.get("errors") or [] if isinstance(e, dict)
        ]
        own_id: str = problem.get("request_id", "")
        self.request_id: str = headers.get("x-request-id", own_id)
        wait = headers.get("retry-after", str(problem.get("retry_after", "")))
        self.retry_after = int(wait) if wait.isdecimal() else None
        fields = "".join(f"; {e['path']}: {e['message']}" for e in self.errors[:3])
        super().__init__(f"{self.status} {self.title}: {self.detail}{fields}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """One sequence's class; `probabilities` [C], or `top` with `top_k`."""

    label: str
    probability: float
    probabilities: np.ndarray | None
    top: list[Choice] | None
    steps: int | None = None  # taken so far, where that was asked
    state: str | None = None  # token to go on from


@dataclass(frozen=True, slots=True)
class Labelling:
    """Each step's class; `probabilities` [T, C], or `top` with `top_k`."""

    labels: list[str]
    probabilities: np.ndarray | None
    top: list[list[Choice]] | None
    steps: int | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Classifications:
    """The answer of `classify`, one prediction a sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Classification]


@dataclass(frozen=True, slots=True)
class Labellings:
    """The answer of `label`, one prediction a sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Labelling]


def _probabilities(prediction: dict[str, Any]) -> np.ndarray | None:
    values = prediction.get("probabilities")
    return None if values is None else np.array(values, np.float32)


def classifications(body: dict[str, Any]) -> Classifications:
    """The JSON answer of `POST /classify`, typed."""
    predictions = [classification(prediction) for prediction in body["predictions"]]
    return Classifications(body["model"], body["version"], body["classes"], predictions)


def labellings(body: dict[str, Any]) -> Labellings:
    """The JSON answer of `POST /label`, typed."""
    predictions = [labelling(prediction) for prediction in body["predictions"]]
    return Labellings(body["model"], body["version"], body["classes"], predictions)


def classification(prediction: dict[str, Any]) -> Classification:
    """A prediction of `POST /classify`, or an answer of such a stream."""
    top = prediction.get("top")
    return Classification(
        label=prediction["label"],
        probability=prediction["probability"],
        probabilities=_probabilities(prediction),
        top=None if top is None else [Choice(**c) for c in top],
        steps=prediction.get("steps"),
        state=prediction.get("state"),
    )


def labelling(prediction: dict[str, Any]) -> Labelling:
    """A prediction of `POST /label`, or an answer of such a stream."""
    top = prediction.get("top")
    return Labelling(
        labels=prediction["labels"],
        probabilities=_probabilities(prediction),
        top=None if top is None else [[Choice(**c) for c in step] for step in top],
        steps=prediction.get("steps"),
        state=prediction.get("state"),
    )
