"""Recognise the sequences that a bundle was trained on, by hashes that it keeps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.bundle.bundle import Bundle
from model.datasets.dataset import TEST, TRAIN, UNASSIGNED, VALIDATION, Dataset
from model.evaluation import evaluation
from model.evaluation.evaluation import Metrics, Predictions

MAX_SEQUENCES = 100_000  # of a data set whose hashes are kept


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a bundle, with and without the sequences that it was trained on.

    Attributes:
        metrics: of all sequences.
        new: of those that were not used in training; None if that is unknown, or if they
            are all or none.
        counts: sequences by their use: `trained_on`, `chose_weights` (the validation
            part), `new`. None: unknown.
    """

    metrics: Metrics
    new: Metrics | None
    counts: dict[str, int] | None


def evaluate(bundle: Bundle, dataset: Dataset) -> Evaluation:
    """Evaluate a bundle. Raises what `evaluation.predict_bundle` raises."""
    predictions = evaluation.predict_bundle(bundle, dataset)
    classes = bundle.metadata.classes
    metrics = evaluation.compute_metrics(predictions, classes)
    parts = parts_in_training(bundle, dataset)
    if parts is None:
        return Evaluation(metrics, None, None)
    codes = {"trained_on": TRAIN, "chose_weights": VALIDATION, "new": UNASSIGNED}
    counts = {name: int((parts == code).sum()) for name, code in codes.items()}
    new = None
    if 0 < counts["new"] < len(dataset):
        rows = parts == UNASSIGNED
        if dataset.task == "label":
            rows = np.repeat(rows, dataset.lengths)
        new = evaluation.compute_metrics(
            Predictions(
                predictions.scores[rows],
                predictions.targets[rows],
                predictions.lengths[rows],
                None if predictions.groups is None else predictions.groups[rows],
                predictions.grouped,
            ),
            classes,
        )
    return Evaluation(metrics, new, counts)


def save(path: Path, dataset: Dataset) -> None:
    """Write hashes and parts of the sequences for training and validation, [N, 2] uint64.

    Writes no file if there are more than `MAX_SEQUENCES`.
    """
    used = dataset.split != TEST
    if used.sum() <= MAX_SEQUENCES:
        codes, parts = dataset.hashes[used], dataset.split[used]
        np.save(path, np.stack([codes, parts.astype(np.uint64)], 1))


def parts_in_training(bundle: Bundle, dataset: Dataset) -> np.ndarray | None:
    """Return the part of each sequence when a bundle was trained, [N]; None: unknown.

    It is TRAIN, VALIDATION, or UNASSIGNED for a new sequence or one of the test part.

    Raises:
        BundleError: the bundle's hashes can't be read.
    """
    hashes = bundle.training_hashes()
    if hashes is None:
        if dataset.digest != bundle.metadata.training.data:
            return None
        return np.where(dataset.split == TEST, UNASSIGNED, dataset.split)
    codes, parts = hashes.T
    ours = dataset.hashes
    results = np.full(len(dataset), UNASSIGNED)
    for part in (VALIDATION, TRAIN):
        results[np.isin(ours, codes[parts == part])] = part
    return results
