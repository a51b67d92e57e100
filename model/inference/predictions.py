"""The results of a network, with the fields that the client's results have."""

from dataclasses import dataclass, field

import numpy as np

from model.bundle.metadata import Metadata
from model.datasets import answers
from model.datasets.readers import Sequences

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Table = dict[str, list[str] | list[str | None] | Numbers]


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The class of a sequence, with `probabilities` [C]."""

    label: str
    probability: float
    probabilities: Floats = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Labelling:
    """The class of each step, with `probabilities` [T, C]."""

    labels: list[str]
    probabilities: Floats = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Classifications:
    """The answer of `classify`: one prediction for each sequence.

    Attributes:
        model: name of the bundle.
        version: of the bundle.
        classes: in the order of `probabilities`.
        ids: of the sequences; numbers from 1 if the data has none.
        predictions: in the order of `ids`.
        accuracy: share of right labels, 0 to 1; None if the data has no labels. A label
            that the network lacks is never right.
    """

    model: str
    version: str
    classes: list[str]
    ids: list[str] = field(repr=False)
    predictions: list[Classification] = field(repr=False)
    accuracy: float | None
    _data: Sequences = field(repr=False)

    def to_dict(self) -> Table:
        """Return columns for a DataFrame, such as `pandas.DataFrame(answer.to_dict())`.

        A row for each sequence: its id, label, true label if the data has it, and the
        probability of each class.
        """
        scores = [prediction.probabilities for prediction in self.predictions]
        return answers.of_sequences(self._data, "classify", self.classes, scores)


@dataclass(frozen=True, slots=True, eq=False)
class Labellings:
    """The answer of `label`: one prediction for each sequence.

    Attributes:
        model: name of the bundle.
        version: of the bundle.
        classes: in the order of `probabilities`.
        ids: of the sequences; numbers from 1 if the data has none.
        predictions: in the order of `ids`.
        accuracy: share of right labels, as in `Classifications`.
    """

    model: str
    version: str
    classes: list[str]
    ids: list[str] = field(repr=False)
    predictions: list[Labelling] = field(repr=False)
    accuracy: float | None
    _data: Sequences = field(repr=False)

    def to_dict(self) -> Table:
        """Return columns for a DataFrame, such as `pandas.DataFrame(answer.to_dict())`.

        A row for each step: its sequence and step, label, true label if the data has it,
        and the probability of each class.
        """
        scores = [prediction.probabilities for prediction in self.predictions]
        return answers.of_sequences(self._data, "label", self.classes, scores)


def classifications(
    metadata: Metadata, data: Sequences, scores: Floats
) -> Classifications:
    """Return the answer with the probabilities [N, C]."""
    classes, best = list(metadata.classes), scores.argmax(1)
    chosen = scores[np.arange(len(best)), best].tolist()
    rows = zip(best.tolist(), chosen, scores, strict=True)
    return Classifications(
        model=metadata.name,
        version=metadata.version,
        classes=classes,
        ids=list(data.ids),
        predictions=[Classification(classes[code], p, row) for code, p, row in rows],
        accuracy=_accuracy(metadata, data, best),
        _data=data,
    )


def labellings(metadata: Metadata, data: Sequences, scores: Floats) -> Labellings:
    """Return the answer with the probabilities [sum of lengths, C]."""
    classes, best = list(metadata.classes), scores.argmax(1)
    labels = [classes[code] for code in best.tolist()]
    places = zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True)
    return Labellings(
        model=metadata.name,
        version=metadata.version,
        classes=classes,
        ids=list(data.ids),
        predictions=[Labelling(labels[a:b], scores[a:b]) for a, b in places],
        accuracy=_accuracy(metadata, data, best),
        _data=data,
    )


def _accuracy(metadata: Metadata, data: Sequences, best: np.ndarray) -> float | None:
    """Return the share of right labels among those that are known for the task."""
    if data.labels is None or data.task not in (None, metadata.task) or not len(best):
        return None
    codes = {name: code for code, name in enumerate(metadata.classes)}
    table = np.array([codes.get(name, -1) for name in data.classes])
    known, labels = np.ones(len(best), bool), table[data.labels]
    if metadata.task == "classify" and data.task is None:  # a label in each row
        starts = data.offsets[:-1]
        lowest = np.minimum.reduceat(data.labels, starts)
        known = lowest == np.maximum.reduceat(data.labels, starts)
        labels = labels[starts]
    return float((labels == best)[known].mean()) if known.any() else None
