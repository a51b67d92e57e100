"""Baselines beside a network: logistic regression, and the majority class.

Logistic regression reads what needs no recurrence: the mean, the standard deviation, the
first and the last frame of each sequence (classify), or the frames before, at and after
each step (label). A category is a number for each of its most frequent values. Both learn from the part for training, and answer what the network
answered. Of large parts they learn from and answer a random sample.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from model.datasets.dataset import Dataset
from model.evaluation import comparison, intervals, text
from model.evaluation.comparison import Baseline
from model.evaluation.evaluation import Predictions

MAX_SEQUENCES, MAX_STEPS = 20_000, 200_000
MAX_NUMBERS = 50_000_000  # in the frames of a sample
MAX_PRODUCTS = 100_000_000  # of one pass: answers x inputs x classes
ITERATIONS = 100
MAX_CATEGORIES = 64  # of a column
Predictor = Callable[[Dataset], np.ndarray]


def evaluate(
    dataset: Dataset,
    predictions: dict[str, Predictions],
    held_out: Sequence[np.ndarray] = (),
) -> dict[str, dict[str, Baseline]]:
    """Return the baselines by part and name; none if they can't be computed.

    Args:
        predictions: the network's, by part; those of the part "train" are not compared.
        held_out: of each fold of a cross-validation, the sequences for training that it
            leaves out, [N] bool; for all repetitions.
    """
    results = {}
    try:
        train = dataset.part("train")
        learnt = train.take(_sample(train))
        predictors = _fit(learnt) if {*predictions} & {"validation", "test"} else {}
        for name, answers in predictions.items():
            if name == "cross_validation":
                results[name] = _cross_validated(train, answers, held_out)
            elif name != "train":
                part, size = dataset.part(name), len(learnt.targets)
                results[name] = _on_part(predictors, part, answers, size)
    except Exception as error:  # A report without baselines is better than none.
        logging.getLogger(__name__).warning("no baselines: %s", error)
        return {}
    return results


def inputs(dataset: Dataset) -> np.ndarray:
    """Return what the logistic regression reads for each answer, [M, 4F] or [M, 3F]."""
    frames, first, last = (
        _numbers(dataset),
        dataset.offsets[:-1],
        dataset.offsets[1:] - 1,
    )
    lengths = dataset.lengths[:, None]
    if dataset.task == "label":
        step = np.arange(len(frames))
        before = np.maximum(step - 1, np.repeat(first, dataset.lengths))
        after = np.minimum(step + 1, np.repeat(last, dataset.lengths))
        return np.concatenate([frames[before], frames, frames[after]], 1)
    mean = np.add.reduceat(frames, first, dtype=np.float64) / lengths
    squares = (frames - np.repeat(mean, dataset.lengths, 0)) ** 2
    deviation = np.sqrt(np.add.reduceat(squares, first) / lengths)
    return np.concatenate([mean, deviation, frames[first], frames[last]], 1)


def _numbers(dataset: Dataset) -> np.ndarray:
    """Return the frames with a column for each frequent category, [sum of lengths, W]."""
    if dataset.schema is None:
        return dataset.frames
    parts = []
    for index, column in enumerate(dataset.columns):
        values = dataset.frames[:, index]
        if not column.size:
            parts.append(values[:, None])
            continue
        ids = np.arange(min(column.size, MAX_CATEGORIES))
        parts.append((values[:, None] == ids).astype(np.float32))
    return np.concatenate(parts, 1)


def _width(dataset: Dataset) -> int:
    """Return how many numbers `_numbers` makes of a frame."""
    if dataset.schema is None:
        return len(dataset.features)
    return sum(min(column.size, MAX_CATEGORIES) or 1 for column in dataset.columns)


def _on_part(
    predictors: dict[str, Predictor], part: Dataset, answers: Predictions, learnt: int
) -> dict[str, Baseline]:
    chosen = _sample(part)
    rows = np.repeat(chosen, part.lengths if part.task == "label" else 1)
    wrong = answers.scores.argmax(1) != answers.targets
    groups = np.arange(len(wrong)) if answers.groups is None else answers.groups
    sample = part.take(chosen)
    predicted = {name: predictor(sample) for name, predictor in predictors.items()}
    return _compare(predicted, answers.targets[rows], wrong[rows], groups[rows], learnt)


def _cross_validated(
    train: Dataset, answers: Predictions, held_out: Sequence[np.ndarray]
) -> dict[str, Baseline]:
    """Predict each fold from the others, as the network did."""
    size = len(train.targets)
    repeats = len(answers.targets) // size
    predicted: dict[str, np.ndarray] = {}
    for number, left_out in enumerate(held_out):
        rows = np.repeat(left_out, train.lengths if train.task == "label" else 1)
        rows = np.flatnonzero(rows) + size * (number * repeats // len(held_out))
        learnt = train.take(~left_out)
        learnt = learnt.take(_sample(learnt))
        for name, predictor in _fit(learnt).items():
            codes = predicted.setdefault(name, np.full(len(answers.targets), -1))
            codes[rows] = predictor(train.take(left_out))
    wrong = answers.scores.argmax(1) != answers.targets
    groups = np.arange(len(wrong)) % size if answers.groups is None else answers.groups
    return _compare(predicted, answers.targets, wrong, groups, size)


def _compare(
    predicted: dict[str, np.ndarray],
    targets: np.ndarray,
    wrong: np.ndarray,
    groups: np.ndarray,
    learnt: int,
) -> dict[str, Baseline]:
    from sklearn.metrics import f1_score

    groups = np.unique(groups, return_inverse=True)[1]
    results = {}
    for name, codes in predicted.items():
        mistakes = codes != targets
        low, high = intervals.error_interval(mistakes, groups)
        results[name] = Baseline(
            count=len(targets),
            learnt=learnt,
            error=100 * float(mistakes.mean()),
            interval=[100 * float(low), 100 * float(high)],
            difference=comparison.difference(mistakes, wrong, groups),
            macro_f1=100 * float(f1_score(targets, codes, average="macro")),
        )
    return results


def _fit(train: Dataset) -> dict[str, Predictor]:
    """Return functions that predict the class of each answer of a data set."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if train.vocabulary is not None:
        return text.baselines(train)
    majority = np.bincount(train.targets).argmax()
    predictors: dict[str, Predictor] = {
        "majority": lambda dataset: np.full(len(dataset.targets), majority)
    }
    if len(np.unique(train.targets)) == 1:
        return predictors
    values = inputs(train)
    mean, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 0, scale, 1)

    def scaled(values: np.ndarray) -> np.ndarray:
        return ((values - mean) / scale).astype(np.float32)

    model = LogisticRegression(max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled(values), train.targets)
    logistic = {"logistic_regression": lambda data: model.predict(scaled(inputs(data)))}
    return {**logistic, **predictors}


def _sample(dataset: Dataset) -> np.ndarray:
    """Choose sequences at random, as many as a baseline can take in seconds, [N] bool."""
    width = _width(dataset)
    most = MAX_PRODUCTS // (4 * width * len(dataset.classes))
    answers = np.ones(len(dataset), np.int64)
    most = min(most, MAX_SEQUENCES)
    if dataset.task == "label":
        answers = dataset.lengths.astype(np.int64)
        most = min(MAX_PRODUCTS // (3 * width * len(dataset.classes)), MAX_STEPS)
    order = np.random.default_rng(0).permutation(len(dataset))
    numbers = np.cumsum(dataset.lengths[order] * np.int64(width))
    fits = (np.cumsum(answers[order]) <= most) & (numbers <= MAX_NUMBERS)
    fits[:1] = True
    chosen = np.zeros(len(dataset), bool)
    chosen[order[fits]] = True
    return chosen
