"""Probabilities that mean what they say: one temperature, and how far off.

Temperature scaling and the expected calibration error are those of Guo et al.,
*On Calibration of Modern Neural Networks* (ICML 2017).
"""

import numpy as np

BINS = 15


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The likeliest temperature for `softmax(logits / temperature)`.

    Its logarithm is taken to be normal about 0 beforehand, so that few rows move
    it little: a small part without a mistake would else call for certainty. Of a
    thousand rows or more, that belief weighs next to nothing.

    Args:
        logits: [M, C].
        targets: [M] class numbers.
    """
    best, reach = 0.0, 3.0  # temperatures from 1/20 to 20
    for _ in range(4):  # ever finer grids around the best so far
        grid = np.linspace(best - reach, best + reach, 31)
        costs = [_cost(logits, targets, np.exp(-log)) + log**2 / 2 for log in grid]
        best, reach = float(grid[np.argmin(costs)]), reach / 10
    return float(np.exp(np.clip(best, -3, 3)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over 15 equal bins, weighted."""
    bins = reliability(probabilities, targets)
    gaps = [b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins]
    return sum(gaps) / len(targets)


def reliability(
    probabilities: np.ndarray, targets: np.ndarray
) -> list[dict[str, float]]:
    """Count, mean confidence and accuracy of each bin that is not empty."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "count": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(right[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def _cost(logits: np.ndarray, targets: np.ndarray, sharpness: float) -> float:
    """Cross entropy, summed over the rows."""
    scaled = logits.astype(np.float64) * sharpness
    scaled -= scaled.max(1, keepdims=True)
    right = scaled[np.arange(len(targets)), targets]
    return float((np.log(np.exp(scaled).sum(1)) - right).sum())
