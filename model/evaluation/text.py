"""Text and records: baselines of text, unknown tokens and categories, and the answers to
unfinished sequences."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from model.bundle import spans
from model.bundle.metadata import PrefixMetrics, SpanMetrics, TextPart
from model.datasets.dataset import Dataset
from model.evaluation import calibration
from model.evaluation.evaluation import Predictions

BUCKETS = 2**18  # of n-grams
LETTERS = (1, 4)  # of an n-gram
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def baselines(train: Dataset) -> dict[str, Callable[[Dataset], np.ndarray]]:
    """Return functions that predict the class of each answer of a data set: by the most
    frequent label of each token (label), or by logistic regression on hashed n-grams of
    letters (classify)."""
    majority = int(np.bincount(train.targets).argmax())
    return {
        **(_frequent_label(train) if train.task == "label" else _n_grams(train)),
        "majority": lambda dataset: np.full(len(dataset.targets), majority),
    }


def _frequent_label(train: Dataset) -> dict[str, Callable[[Dataset], np.ndarray]]:
    strings = train.strings or ()
    counts = np.zeros((len(strings), len(train.classes)), np.int64)
    np.add.at(counts, (train.words, train.targets), 1)
    seen = counts.sum(1) > 0
    # A token that is new is most like those that occur once.
    once = counts[counts.sum(1) == 1].sum(0)
    new = int((once if once.any() else counts.sum(0)).argmax())
    labels = np.where(seen, counts.argmax(1), new)
    known = {string: labels[i] for i, string in enumerate(strings)}

    def predict(dataset: Dataset) -> np.ndarray:
        table = [known.get(string, new) for string in dataset.strings or ()]
        return np.array(table)[dataset.words]

    return {"frequent_label": predict}


def _n_grams(train: Dataset) -> dict[str, Callable[[Dataset], np.ndarray]]:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(train.targets)) == 1:
        return {}
    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=LETTERS, n_features=BUCKETS
    )
    model = LogisticRegression(C=10, max_iter=200)
    model.fit(hashing.transform(_texts(train)), train.targets)
    return {
        "logistic_regression": lambda data: model.predict(
            hashing.transform(_texts(data))
        )
    }


def _texts(dataset: Dataset) -> list[str]:
    """Return the texts of a data set."""
    strings, words = dataset.strings or (), dataset.words.tolist()
    kind = dataset.vocabulary.kind if dataset.vocabulary else "tokens"
    between = "" if kind == "characters" else " "
    ends = dataset.offsets.tolist()
    return [
        between.join(strings[word] for word in words[start:end])
        for start, end in itertools.pairwise(ends)
    ]


def parts(
    dataset: Dataset, predictions: Mapping[str, Predictions]
) -> dict[str, TextPart]:
    """Return what each part's tokens are: how many, how many training has not seen, and
    the errors on both kinds, to label. Of records, which have an unknown category."""
    strings = dataset.strings or ()
    if dataset.vocabulary is not None:
        seen = np.bincount(dataset.part("train").words, minlength=len(strings)) > 0
    results = {}
    for name in ("validation", "test"):
        part = dataset.part(name)
        if not len(part) or name not in predictions:
            continue
        if dataset.vocabulary is not None:
            new = ~seen[part.words]
        else:
            places = [i for i, column in enumerate(dataset.columns) if column.size]
            new = (part.frames[:, places] == 0).any(1)
        wrong = np.zeros(0, bool)
        if dataset.task == "label":
            answers = predictions[name]
            wrong = answers.scores.argmax(1) != answers.targets
        results[name] = TextPart(
            tokens=len(new),
            new=100 * float(new.mean()),
            error_seen=_error(wrong, ~new),
            error_new=_error(wrong, new),
            spans=_spans(part, predictions[name]),
        )
    return results


def _error(wrong: np.ndarray, mask: np.ndarray) -> float | None:
    return 100 * float(wrong[mask].mean()) if len(wrong) and mask.any() else None


def _spans(part: Dataset, answers: Predictions) -> SpanMetrics | None:
    """Compare the spans that the service returns with the true ones."""
    scheme = spans.tagging_scheme(part.classes)
    if part.task != "label" or scheme is None:
        return None
    total = right = true = 0
    probabilities = calibration.softmax(answers.scores)
    for start, end in itertools.pairwise(part.offsets.tolist()):
        path = spans.most_probable(probabilities[start:end], scheme).tolist()
        codes = part.targets[start:end].tolist()
        predicted, actual = (
            {*spans.of_codes(labels, part.classes, scheme)} for labels in (path, codes)
        )
        total += len(predicted)
        true += len(actual)
        right += len(predicted & actual)
    return SpanMetrics(
        spans=true,
        precision=100 * right / max(total, 1),
        recall=100 * right / max(true, 1),
        f1=100 * 2 * right / max(total + true, 1),
    )


def prefixes(part: Dataset, probabilities: np.ndarray) -> PrefixMetrics:
    """Measure the answers to unfinished sequences.

    Args:
        part: to classify.
        probabilities: [sum of lengths, C] after each step.
    """
    targets = np.repeat(part.targets, part.lengths)
    right = probabilities.argmax(1) == targets
    errors, decided = [], []
    for share in QUARTERS:
        steps = np.maximum(1, np.ceil(share * part.lengths).astype(int))
        errors.append(100 * float(1 - right[part.offsets[:-1] + steps - 1].mean()))
    answers = probabilities.argmax(1)
    for start, end in itertools.pairwise(part.offsets.tolist()):
        other = np.flatnonzero(answers[start:end] != answers[end - 1])
        decided.append(2 + other[-1] if len(other) else 1)
    return PrefixMetrics(
        calibration_error=100
        * calibration.expected_calibration_error(probabilities, targets),
        errors=tuple(errors),
        decided=float(np.median(decided)),
        length=float(np.median(part.lengths)),
    )
