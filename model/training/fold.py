"""Train on all sequences but some, and predict those: one fold of a cross-validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from model.config import Config
from model.datasets.dataset import TEST, TRAIN, Dataset
from model.evaluation import evaluation
from model.evaluation.evaluation import Predictions
from model.training import loop, steps

REPORT_SECONDS = 0.2  # between two reports of progress
Progress = Callable[[int], None]  # called with the updates so far


@dataclass(frozen=True, slots=True)
class Fold:
    """The settings of a fold, and the sequences that it holds out."""

    config: Config
    held_out: np.ndarray  # [N] bool


@dataclass(frozen=True, slots=True)
class FoldResult:
    """The answers for the sequences that were held out.

    Attributes:
        logits: [M, C], for each sequence, or each of their steps, in order.
        cost, error: of these answers; the error in percent.
        training_cost: of the last epoch.
        updates: of the weights.
        seconds: that the training took.
    """

    logits: np.ndarray
    cost: float
    error: float
    training_cost: float
    updates: int
    seconds: float


def train_fold(dataset: Dataset, fold: Fold, report: Progress) -> FoldResult:
    """Train without the held out sequences of `dataset`, and predict them.

    Raises:
        ConfigError: see `loop.fit`.
    """
    begun = time.monotonic()
    data = replace(dataset, split=np.where(fold.held_out, TEST, TRAIN))
    callback = _Reports(report)
    trained = loop.fit(data, fold.config, callback=callback)
    if trained.interrupted:
        raise KeyboardInterrupt
    held_out = data.part("test")
    predictions = evaluation.predict(held_out, steps.scorer(trained.network))
    wrong = predictions.scores.argmax(1) != predictions.targets
    return FoldResult(
        predictions.scores,
        _cost(predictions, held_out),
        100 * float(wrong.mean()),
        trained.history[-1].cost,
        callback.updates,
        time.monotonic() - begun,
    )


def _cost(predictions: Predictions, dataset: Dataset) -> float:
    """Return the cross entropy, averaged over each sequence's steps, then over sequences."""
    scores = predictions.scores.astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    right = scores[np.arange(len(scores)), predictions.targets]
    costs = np.log(np.exp(scores).sum(1)) - right
    if dataset.task == "label":
        costs = np.add.reduceat(costs, dataset.offsets[:-1]) / dataset.lengths
    return float(costs.mean())


class _Reports(loop.Callback):
    """Reports the progress of a training now and then."""

    def __init__(self, report: Progress):
        self.report, self.updates, self.last = report, 0, 0.0

    def on_batch_end(self, cost: float, error: float) -> None:
        self.updates += 1
        if time.monotonic() - self.last > REPORT_SECONDS:
            self.report(self.updates)
            self.last = time.monotonic()
