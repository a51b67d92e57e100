"""95 % intervals of error, macro F1 and expected calibration error (ECE).

The answers within one sequence, or within one group of sequences, are not independent, so
every interval is that between groups:

- error: the score interval of Wilson (1927), for the number of independent answers that
  are worth as much as these (Kish's design effect) and Student's t, as Korn and Graubard
  have it (Survey Methodology 24, 1998);
- macro F1 and ECE: a bootstrap over groups. If few answers are wrong it is too sure,
  so both intervals reach at least as far as that of the error implies.

Few answers make an ECE too high: a perfectly calibrated predictor has 26 % on eight. The
interval subtracts the excess (a basic bootstrap), and begins at 0 unless the ECE is higher
than chance allows for a perfectly calibrated predictor.

Several answers of a single group say nothing about other groups: their intervals are 0 to
100 %.
"""

from dataclasses import dataclass

import numpy as np

from model.evaluation import calibration

NORMAL_95 = 1.959964  # a standard normal variable is within it with 95 % probability
STUDENT_95 = (
    12.7062,
    4.3027,
    3.1824,
    2.7764,
)  # Student's t of 1 to 4 degrees of freedom
DRAWS = 1_000
BLOCKS = 2_000  # more groups are drawn in this many blocks, put together at random
CLASSES_AT_ONCE = 500  # bounds the memory of a bootstrap
ENOUGH_MISTAKEN = 10  # groups with mistakes, which show how mistakes go together


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals [low, high] of the metrics of a part, in percent."""

    error: list[float]
    macro_f1: list[float]
    calibration_error: list[float]


def estimate(
    scores: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[Intervals, float]:
    """Estimate the intervals of a part; the same answers give the same intervals.

    Args:
        scores: [M, C] probabilities.
        targets: [M] class numbers.
        groups: [M] int, the group of each answer, from 0.

    Returns:
        the intervals, and the mean ECE in percent that a perfectly calibrated predictor
        of these confidences has on as many answers.
    """
    random = np.random.default_rng(0)
    groups = (np.cumsum(np.bincount(groups) > 0) - 1)[groups]  # without gaps
    predicted = scores.argmax(1)
    wrong = predicted != targets
    low, high = error_interval(wrong, groups)
    blocks = _blocks(groups, random)
    count = int(blocks.max()) + 1
    weights = _draw(count, random)
    f1 = _f1_interval(weights, blocks, targets, predicted, scores.shape[1])
    error = wrong.mean()
    # As if the pattern of mistakes stayed and only their number changed.
    f1_low, f1_high = f1.low, f1.high
    f1_low = min(f1_low, f1.value * (1 - high) / max(1 - error, 1e-9))
    f1_high = max(f1_high, 1 - (1 - f1.value) * (low / error if error else 1))
    ece, by_chance = _ece_interval(weights, blocks, scores, ~wrong, (low, high), random)
    if count == 1 < len(wrong):
        return Intervals(*(_percent(0, 1) for _ in range(3))), 100 * by_chance
    intervals = Intervals(
        error=_percent(low, high),
        macro_f1=_percent(f1_low, f1_high),
        calibration_error=_percent(*ece),
    )
    return intervals, 100 * by_chance


def wilson(
    share: float, count: float, deviations: float = NORMAL_95
) -> tuple[float, float]:
    """Return the score interval of a share (0 to 1) of independent answers."""
    square = deviations**2 / count
    middle = (share + square / 2) / (1 + square)
    spread = share * (1 - share) / count + square / (4 * count)
    half = deviations * spread**0.5 / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def student_95(freedom: int) -> float:
    """Return Student's t at 97.5 %; over 4 degrees by the expansion of Cornish and Fisher."""
    if freedom <= len(STUDENT_95):
        return STUDENT_95[freedom - 1]
    z, n = NORMAL_95, freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def error_interval(wrong: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return the interval of the share of wrong answers, 0 to 1.

    Args:
        wrong: [M] bool.
        groups: [M] int, the group of each answer, from 0 without gaps.
    """
    share, count = float(wrong.mean()), len(wrong)
    sizes = np.bincount(groups)
    if len(sizes) == count:
        return wilson(share, count)
    if len(sizes) == 1:
        return 0.0, 1.0
    mistakes = np.bincount(groups, wrong)
    # How many answers are worth one independent answer: at least 1, and at most a whole
    # group, which is assumed as long as too few groups have mistakes to tell.
    most = float((sizes**2).sum() / count)
    squares = float(((mistakes - share * sizes) ** 2).sum())
    squares *= len(sizes) / (len(sizes) - 1)
    variance = count * share * (1 - share)
    effect = min(max(squares / variance, 1.0), most) if variance else most
    known = min((mistakes > 0).sum() / ENOUGH_MISTAKEN, 1.0)
    effect = known * effect + (1 - known) * most
    return wilson(share, count / effect, student_95(len(sizes) - 1))


@dataclass(frozen=True, slots=True)
class _Estimate:
    value: float
    low: float
    high: float


def _f1_interval(
    weights: np.ndarray,
    blocks: np.ndarray,
    targets: np.ndarray,
    predicted: np.ndarray,
    classes: int,
) -> _Estimate:
    """The macro F1 of the classes that occur, and percentiles of its bootstrap."""
    total, present = np.zeros(len(weights) + 1), np.zeros(len(weights) + 1)
    right = targets == predicted
    for first in range(0, classes, CLASSES_AT_ONCE):
        width = min(CLASSES_AT_ONCE, classes - first)
        counts = []
        for codes, values in ((targets, right), (targets, None), (predicted, None)):
            inside = (codes >= first) & (codes < first + width)
            values = None if values is None else values[inside]
            table = _sums(blocks[inside], codes[inside] - first, width, values, weights)
            counts.append(np.concatenate([weights @ table, table.sum(0)[None]]))
        correct, actual, guessed = counts
        f1 = 2 * correct / np.maximum(actual + guessed, 1)
        total += np.where(actual > 0, f1, 0).sum(1)
        present += (actual > 0).sum(1)
    *draws, value = total / np.maximum(present, 1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return _Estimate(float(value), float(low), float(high))


def _ece_interval(
    weights: np.ndarray,
    blocks: np.ndarray,
    scores: np.ndarray,
    right: np.ndarray,
    error: tuple[float, float],
    random: np.random.Generator,
) -> tuple[tuple[float, float], float]:
    """The interval of the ECE, and the mean ECE of a perfectly calibrated predictor."""
    confidence = scores.max(1).astype(np.float64)
    bins = calibration.bin_numbers(confidence)
    # Confidence minus accuracy, times the answers.
    gaps = _sums(blocks, bins, calibration.BINS, confidence - right, weights)
    sizes, total = np.bincount(blocks), gaps.sum(0)
    ece = np.abs(total).sum() / len(right)
    drawn = weights @ gaps
    answers = weights @ sizes
    draws = np.abs(drawn).sum(1) / answers
    high, low = 2 * ece - np.quantile(draws, (0.025, 0.975))
    counts = np.bincount(bins, minlength=calibration.BINS)
    means = np.bincount(bins, confidence, calibration.BINS) / np.maximum(counts, 1)
    luck = counts * means - random.binomial(
        counts, means.clip(0, 1), (DRAWS, len(counts))
    )
    chance = np.abs(luck).sum(1) / len(right)
    if len(sizes) < len(right):  # The answers of a group are right or wrong together.
        together = (
            np.abs(drawn - answers[:, None] * total / len(right)).sum(1) / answers
        )
        chance = max(chance, together, key=np.mean)
    if ece <= np.quantile(chance, 0.975):
        low = 0
    # Its mean confidence and accuracy alone differ by this much.
    differences = np.abs(confidence.mean() - 1 + np.array(error))
    low, high = min(low, *differences), max(high, *differences)
    return (max(low, 0.0), min(high, 1.0)), float(chance.mean())


def _draw(count: int, random: np.random.Generator) -> np.ndarray:
    """Return how often each draw of a bootstrap has each block, [draws, blocks]."""
    drawn = random.integers(count, size=(DRAWS, count))
    drawn += np.arange(DRAWS)[:, None] * count
    counts = np.bincount(drawn.ravel(), minlength=DRAWS * count)
    return counts.reshape(DRAWS, count).astype(np.float32)


def _sums(
    blocks: np.ndarray,
    columns: np.ndarray,
    width: int,
    values: np.ndarray | None,
    weights: np.ndarray,
) -> np.ndarray:
    """Return the sums of values by block and column, or of ones."""
    size = weights.shape[1]
    sums = np.bincount(blocks * width + columns, values, size * width)
    return sums.reshape(size, width).astype(np.float32)


def _blocks(groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Put groups together at random if they are many: blocks of independent groups are
    independent, and a draw of 2,000 blocks takes as long for a million groups."""
    count = int(groups.max()) + 1
    if count <= BLOCKS:
        return groups
    return (random.permutation(count) % BLOCKS)[groups]


def _percent(low: float, high: float) -> list[float]:
    return [100 * float(low), 100 * float(high)]
