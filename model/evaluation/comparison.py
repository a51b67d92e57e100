"""Compare two predictors on the same answers: the difference of their errors.

Chance is a 95 % interval for the difference of two errors on the same answers: that of
Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
Statistics in Medicine 24, 2005), a normal interval after half an answer is added to each
cell of the table of right and wrong. Only answers that one predictor has right and the
other wrong widen it. The steps of one sequence, and the sequences of one group, are not
independent, so the variance is that between groups, as Obuchowski has it ("On the
comparison of correlated proportions for clustered data", Statistics in Medicine 17, 1998),
and at least that of independent answers; Student's t allows for few groups. Several answers
of a single group say nothing about other groups: the interval is -100 to 100.
"""

from dataclasses import dataclass

import numpy as np

from model.evaluation.intervals import NORMAL_95, student_95

NAMES = {
    "logistic_regression": "logistic regression",
    "frequent_label": "the most frequent label of each token",
    "majority": "the majority class",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One error minus another, in percent points, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """True if the first error is higher beyond chance."""
        return self.low > 0

    @property
    def better(self) -> bool:
        """True if the first error is lower beyond chance."""
        return self.high < 0

    @property
    def as_good(self) -> bool:
        """True if the first error is higher by at most a standard error, or lower."""
        return 2 * NORMAL_95 * self.value <= self.high - self.low

    def __str__(self) -> str:
        return f"{self.value:+.2f} points, 95 % interval {self.low:+.2f} to {self.high:+.2f}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The error of a baseline beside that of the network, in percent.

    Attributes:
        count: the answers that both gave.
        learnt: the answers that the baseline learnt from.
        interval: 95 % interval of the error.
        difference: the network's error minus this one, on the same answers.
        macro_f1: mean F1 of the classes.
    """

    count: int
    learnt: int
    error: float
    interval: list[float]
    difference: Difference
    macro_f1: float | None = None


def difference(present: np.ndarray, new: np.ndarray, groups: np.ndarray) -> Difference:
    """The error of a new predictor minus that of the present one, on the same answers.

    Args:
        present, new: [M] bool, the wrong answers of either predictor.
        groups: [M] int, the group (such as the sequence) of each answer, from 0.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(groups)  # answers of each group
    changes = new.astype(float) - present
    value = 100 * float(changes.mean())
    if len(counts) == 1 < len(changes):
        return Difference(value, -100.0, 100.0)
    total = len(changes) + 2  # with half an answer in each of the four cells
    mean = changes.sum() / total
    added = 1 + 2 * mean**2  # squared deviations of those halves
    squares, deviations = ((changes - mean) ** 2).sum(), NORMAL_95
    if len(counts) < len(changes):
        apart = np.bincount(groups, changes) - counts * mean
        between = (apart**2).sum() * len(counts) / (len(counts) - 1)
        squares, deviations = max(squares, between), student_95(len(counts) - 1)
    margin = deviations * np.sqrt(squares + added) / total
    low, high = (100 * float(end) for end in (mean - margin, mean + margin))
    return Difference(value, max(low, -100.0), min(high, 100.0))


def verdict(baselines: dict[str, Baseline]) -> str:
    """Say in a sentence whether the network beats its baselines."""
    sentences = []
    for verb, conjunction, true in (
        ("is worse than", "and", lambda change: change.worse),
        ("does not beat", "or", lambda change: not (change.worse or change.better)),
    ):
        changes = {
            NAMES[n]: b.difference for n, b in baselines.items() if true(b.difference)
        }
        if changes:
            names = f" {conjunction} ".join(changes)
            points = "; ".join(map(str, changes.values()))
            sentences.append(f"{verb} {names} beyond chance ({points})")
    if not sentences:
        names = " and ".join(NAMES[name] for name in baselines)
        sentences = [f"beats {names} beyond chance"]
    return f"the network {', and '.join(sentences)}"
