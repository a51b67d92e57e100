"""Compute metrics of predictions: error, accuracy by class and by length, calibration.

They depend on probabilities alone, so that a network in training and an exported bundle
are evaluated by the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from model.bundle.bundle import Bundle
from model.datasets.dataset import Dataset, merge_feature_names
from model.evaluation import calibration, intervals
from model.evaluation.comparison import Baseline
from model.evaluation.intervals import Intervals
from model.network import reload

BATCH_SIZE = 128


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions: one row for each sequence (classify) or valid step (label)."""

    scores: np.ndarray  # [M, C] logits or probabilities
    targets: np.ndarray  # [M]
    lengths: np.ndarray  # [M], of the row's sequence
    # [M], from 0: rows of one group aren't independent; None: each row is
    groups: np.ndarray | None = None
    grouped: bool = False  # the groups are those of the data, and not its sequences


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class, in percent; None where nothing was to be found, or found.

    Attributes:
        count: answers that should be of the class.
        precision: share of the answers of this class that are right.
        recall: share of `count` that was found.
        f1: their harmonic mean.
    """

    count: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of one part of the data; errors and accuracies in percent.

    Attributes:
        calibration_error: the expected calibration error (ECE).
        calibration_error_by_chance: the mean ECE of a perfectly calibrated predictor with
            the same confidences, on as many answers.
        intervals: 95 % intervals.
        class_accuracy: None for a class that the part lacks.
        by_class: precision, recall and F1 of each class.
        confusion: counts, [true][predicted].
        baselines: by name; none if they were not evaluated.
        groups: groups of the data that the answers are of; None if it has none.
    """

    count: int
    error: float
    accuracy: float
    macro_f1: float
    calibration_error: float
    calibration_error_by_chance: float
    intervals: Intervals
    class_accuracy: dict[str, float | None]
    by_class: dict[str, ClassMetrics]
    confusion: list[list[int]]
    by_length: list[dict[str, float]]
    reliability: list[dict[str, float]]
    baselines: dict[str, Baseline] = field(default_factory=dict)
    groups: int | None = None


def evaluate_bundle(bundle: Bundle, dataset: Dataset) -> Metrics:
    """Evaluate the SavedModel of a bundle. Raises what `predict_bundle` raises."""
    predictions = predict_bundle(bundle, dataset)
    return compute_metrics(predictions, bundle.metadata.classes)


def predict_bundle(bundle: Bundle, dataset: Dataset) -> Predictions:
    """The probabilities that the SavedModel of a bundle computes.

    Raises:
        ValueError: the data is of another task or feature count, or has a class
            that the bundle doesn't know.
    """
    metadata = bundle.metadata
    if dataset.task != metadata.task:
        raise ValueError(
            f"the data is to {dataset.task}, the bundle to {metadata.task}"
        )
    if len(dataset.features) != metadata.input.features:
        raise ValueError(
            f"the data has {len(dataset.features)} features,"
            f" the bundle takes {metadata.input.features}"
        )
    merge_feature_names(metadata.input.names, dataset.features)  # refuses another order
    if not len(dataset):
        raise ValueError("the data has no such part")
    dataset = dataset.map_classes(metadata.classes)
    with bundle.saved_model() as folder:
        step = reload.saved_model(folder)

    def scorer(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        state = np.zeros((len(lengths), metadata.state_size), np.float32)
        return step(frames, lengths, state)[0]

    return predict(dataset, scorer)


def predict(
    dataset: Dataset, scorer: Callable[..., np.ndarray], batch_size: int = BATCH_SIZE
) -> Predictions:
    """Score each sequence, in batches of similar length.

    Args:
        scorer: frames [B, T, F], lengths [B] -> [B, C] or [B, T, C].
    """
    order = np.argsort(dataset.lengths, kind="stable")
    scores = [np.empty(0)] * len(dataset)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        frames, lengths = pad([dataset.sequence(row) for row in rows])
        results = np.asarray(scorer(frames, lengths))
        for row, result, length in zip(rows, results, lengths, strict=True):
            scores[row] = result[:length] if dataset.task == "label" else result[None]
    repeats = [len(score) for score in scores]
    return Predictions(
        np.concatenate(scores),
        dataset.targets,
        np.repeat(dataset.lengths, repeats),
        answer_groups(dataset),
        grouped=dataset.groups is not None,
    )


def answer_groups(dataset: Dataset) -> np.ndarray:
    """Return the group of each answer, [M] from 0: its sequence, or the data's group."""
    groups = np.arange(len(dataset))
    if dataset.groups is not None:
        groups = np.unique(dataset.groups, return_inverse=True)[1]
    steps = dataset.lengths if dataset.task == "label" else 1
    return np.repeat(groups, steps)


def pad(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad sequences [T, F] to frames [B, longest T, F]; return them and lengths [B]."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    frames = np.zeros(
        (len(sequences), lengths.max(), sequences[0].shape[1]), np.float32
    )
    for row, sequence in zip(frames, sequences, strict=True):
        row[: len(sequence)] = sequence
    return frames, lengths


def compute_metrics(predictions: Predictions, classes: tuple[str, ...]) -> Metrics:
    """Compute the metrics of predictions whose scores are probabilities."""
    predicted = predictions.scores.argmax(1)
    right = predicted == predictions.targets
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (predictions.targets, predicted), 1)
    correct, actual, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = actual > 0
    f1 = 2 * correct / np.maximum(actual + guessed, 1)
    shares = correct / np.maximum(actual, 1)
    groups = predictions.groups
    if groups is None:
        groups = np.arange(len(right))
    uncertainty, by_chance = intervals.estimate(
        predictions.scores,
        predictions.targets,
        groups,
    )
    return Metrics(
        count=len(right),
        error=100 * float(1 - right.mean()),
        accuracy=100 * float(right.mean()),
        macro_f1=100 * float(f1[present].mean()),
        calibration_error=100
        * calibration.expected_calibration_error(
            predictions.scores, predictions.targets
        ),
        calibration_error_by_chance=by_chance,
        intervals=uncertainty,
        class_accuracy={
            name: 100 * float(share) if occurs else None
            for name, share, occurs in zip(classes, shares, present, strict=True)
        },
        by_class={
            name: ClassMetrics(
                int(actual[code]),
                _share(correct[code], guessed[code]),
                _share(correct[code], actual[code]),
                _share(2 * correct[code], actual[code] + guessed[code]),
            )
            for code, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
        by_length=_by_length(predictions.lengths, right),
        reliability=calibration.reliability_bins(
            predictions.scores, predictions.targets
        ),
        groups=len(np.unique(groups)) if predictions.grouped else None,
    )


def _share(count: int, total: int) -> float | None:
    return 100 * float(count / total) if total else None


def _by_length(lengths: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return the accuracy of up to ten groups of lengths, of about the same size."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 11), method="higher"))
    groups = np.searchsorted(edges[1:-1], lengths, side="left")
    return [
        {
            "shortest": int(lengths[groups == group].min()),
            "longest": int(lengths[groups == group].max()),
            "count": int((groups == group).sum()),
            "accuracy": 100 * float(right[groups == group].mean()),
        }
        for group in np.unique(groups)
    ]
