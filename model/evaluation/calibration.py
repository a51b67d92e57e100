"""Calibration: fit one temperature, and measure the expected calibration error (ECE).

Temperature scaling and the ECE are those of Guo et al.,
*On Calibration of Modern Neural Networks* (ICML 2017).
"""

import numpy as np

BINS = 15
FEW_MISTAKES = 10


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the most likely temperature for `softmax(logits / temperature)`.

    The prior of its logarithm is a standard normal distribution, so that few rows
    change it little: a small part without errors would otherwise make the network
    certain. With a thousand rows or more the prior hardly matters. With few mistakes the
    temperature is at least 1: they don't show that the network is too modest.

    Args:
        logits: [M, C].
        targets: [M] class numbers.
    """
    best, radius = 0.0, 3.0  # temperatures from 1/20 to 20
    for _ in range(4):  # ever finer grids around the best so far
        grid = np.linspace(best - radius, best + radius, 31)
        costs = [_cost(logits, targets, np.exp(-log)) + log**2 / 2 for log in grid]
        best, radius = float(grid[np.argmin(costs)]), radius / 10
    mistakes = int((logits.argmax(1) != targets).sum())
    lowest = 0 if mistakes < FEW_MISTAKES else -3
    return float(np.exp(np.clip(best, lowest, 3)))


def cross_entropy(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Return the mean cross entropy of the rows, in nats."""
    return _cost(logits, targets, 1 / temperature) / len(targets)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the ECE: the mean gap of confidence and accuracy over 15 weighted bins."""
    bins = reliability_bins(probabilities, targets)
    gaps = [b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins]
    return sum(gaps) / len(targets)


def reliability_bins(
    probabilities: np.ndarray, targets: np.ndarray
) -> list[dict[str, float]]:
    """Return count, mean confidence and accuracy of each bin that is not empty."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == targets
    bins = bin_numbers(confidence)
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


def bin_numbers(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, 0 to 14."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def _cost(logits: np.ndarray, targets: np.ndarray, sharpness: float) -> float:
    """Return the cross entropy, summed over the rows."""
    scaled = logits.astype(np.float64) * sharpness
    scaled -= scaled.max(1, keepdims=True)
    right = scaled[np.arange(len(targets)), targets]
    return float((np.log(np.exp(scaled).sum(1)) - right).sum())
