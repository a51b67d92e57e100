"""Probabilities that mean what they say: one temperature, and how far off.

Temperature scaling and the expected calibration error are those of Guo et al.,
*On Calibration of Modern Neural Networks* (ICML 2017).
"""

import numpy as np

BINS = 15


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature that makes `softmax(logits / temperature)` most likely.

    A class is asked for with probability (M + 1) / (M + 2) instead of 1, as in
    Platt's *Probabilistic Outputs for Support Vector Machines* (1999): a small
    part without a single mistake would else call for certainty. The cost is
    convex in one over the temperature, so ternary search finds its only minimum.

    Args:
        logits: [M, C].
        targets: [M] class numbers.
    """
    count, classes = logits.shape
    wanted = np.full((count, classes), 1 / (count + 2) / max(classes - 1, 1))
    wanted[np.arange(count), targets] = (count + 1) / (count + 2)
    low, high = 1 / 20, 20.0
    while high - low > 1e-4 * low:
        third = (high - low) / 3
        if _cost(logits, wanted, low + third) < _cost(logits, wanted, high - third):
            high -= third
        else:
            low += third
    return 2 / (low + high)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def expected_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
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


def _cost(logits: np.ndarray, wanted: np.ndarray, sharpness: float) -> float:
    scaled = logits.astype(np.float64) * sharpness
    scaled -= scaled.max(1, keepdims=True)
    total = np.log(np.exp(scaled).sum(1))
    return float((total - (scaled * wanted).sum(1)).mean())
