"""The service's answers as the client gives them."""

from dataclasses import dataclass
from typing import Any

import numpy as np


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


@dataclass(frozen=True, slots=True)
class Labelling:
    """Each step's class; `probabilities` [T, C], or `top` with `top_k`."""

    labels: list[str]
    probabilities: np.ndarray | None
    top: list[list[Choice]] | None


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
    predictions = [
        Classification(
            label=prediction["label"],
            probability=prediction["probability"],
            probabilities=_probabilities(prediction),
            top=[Choice(**c) for c in prediction["top"]]
            if "top" in prediction
            else None,
        )
        for prediction in body["predictions"]
    ]
    return Classifications(body["model"], body["version"], body["classes"], predictions)


def labellings(body: dict[str, Any]) -> Labellings:
    """The JSON answer of `POST /label`, typed."""
    predictions = [
        Labelling(
            labels=prediction["labels"],
            probabilities=_probabilities(prediction),
            top=[[Choice(**c) for c in step] for step in prediction["top"]]
            if "top" in prediction
            else None,
        )
        for prediction in body["predictions"]
    ]
    return Labellings(body["model"], body["version"], body["classes"], predictions)
