"""The same network with int8 weights: about twice as fast, and what that changes.

ONNX Runtime's dynamic quantisation keeps the recurrent weights as int8 and takes
each step's activations to 8 bits by their range. That range is taken over the whole
batch, so an answer then depends a little on its batch mates. How much is measured
before anything is published. There is no such kernel for the GRU.
"""

import logging
from pathlib import Path

import numpy as np

from model.bundle import bundle
from model.bundle.bundle import Metadata, Quantization
from model.bundle.golden import Golden, Step
from model.datasets.dataset import Dataset
from model.network import reload
from model.training import evaluation
from model.training.evaluation import Predictions

# More than these and the bundle is refused.
MAX_ERROR = 0.5  # points of error on top
MAX_CALIBRATION = 0.5  # points of calibration error on top
MAX_CHANGE = 0.1  # of a probability, by the weights or by batch mates
MARGIN = 2.0  # another processor rounds otherwise
BATCH = 32


class QuantizationError(ValueError):
    """A network that can't be quantised, or loses too much by it."""


def check(cell: str) -> None:
    """Refuse a network that has no int8 kernel.

    Raises:
        QuantisationError: it is no LSTM.
    """
    if cell != "lstm":
        raise QuantizationError(
            f"--int8 is for LSTM networks: ONNX Runtime has no int8 {cell.upper()}"
        )


def write(folder: Path) -> None:
    """Quantise the recurrent weights of a bundle's ONNX network."""
    # Imported here: it brings ONNX along, which a card's text does not need.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("root").addFilter(_quiet)  # advice for other kinds of networks
    try:
        quantize_dynamic(
            folder / bundle.NETWORK,
            folder / bundle.INT8,
            op_types_to_quantize=["LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.getLogger("root").removeFilter(_quiet)


def measure(
    folder: Path, metadata: Metadata, golden: Golden, part: str, dataset: Dataset
) -> Quantization:
    """What the int8 weights change on a part of the data.

    Raises:
        QuantisationError: more than the bounds allow; with each figure.
    """
    exact, int8 = (
        reload.onnx(folder / bundle.NETWORK),
        reload.onnx(folder / bundle.INT8),
    )
    size = metadata.state_size
    before = _answer(exact, dataset, size, 1)
    alone = _answer(int8, dataset, size, 1)
    mates = _answer(int8, dataset, size, BATCH)
    figures = evaluation.compute_metrics(alone, metadata.classes)
    change = Quantization(
        part=part,
        error=figures.error,
        calibration_error=figures.calibration_error,
        same_class=100
        * float((before.scores.argmax(1) == alone.scores.argmax(1)).mean()),
        largest=float(np.abs(alone.scores - before.scores).max()),
        mates=float(np.abs(mates.scores - alone.scores).max()),
        bound=MARGIN * golden.difference(int8),
    )
    exactly = evaluation.compute_metrics(before, metadata.classes)
    _refuse(change, exactly.error, exactly.calibration_error)
    return change


def section(metadata: Metadata) -> str:
    """What the card says of it; empty where there is no int8 network."""
    change = metadata.int8
    if change is None:
        return ""
    exact = metadata.training.parts[change.part]
    return f"""## int8

`assets.extra/{bundle.INT8.name}` is the same network with int8 weights; the service takes it
with `UNROLLED_PRECISION=int8`. On the {change.part} part:

| | float32 | int8 | at most |
| --- | --- | --- | --- |
| Error | {exact.error:.2f} % | {change.error:.2f} % | {MAX_ERROR:g} points more |
| Calibration error | {exact.calibration_error:.2f} % | {change.calibration_error:.2f} % | {MAX_CALIBRATION:g} points more |
| Same class as float32 | | {change.same_class:.2f} % | |
| Largest change of a probability | | {change.largest:.4f} | {MAX_CHANGE:g} |
| Largest change by batch mates | | {change.mates:.4f} | {MAX_CHANGE:g} |

The 8 bits of the activations are laid over the range of the whole batch: an answer changes a
little with its batch mates, and more beside frames of numbers far larger than these."""


def _refuse(change: Quantization, error: float, calibration_error: float) -> None:
    faults = [
        f"{what} {figure:.3g} (at most {bound:g} is allowed)"
        for what, figure, bound in (
            ("points of error on top:", change.error - error, MAX_ERROR),
            (
                "points of calibration error on top:",
                change.calibration_error - calibration_error,
                MAX_CALIBRATION,
            ),
            ("change of a probability:", change.largest, MAX_CHANGE),
            ("change of a probability by batch mates:", change.mates, MAX_CHANGE),
        )
        if not figure <= bound
    ]
    if faults:
        raise QuantizationError(
            f"int8 weights change too much, nothing was published: {'; '.join(faults)}"
        )


def _answer(step: Step, dataset: Dataset, size: int, batch: int) -> Predictions:
    def scorer(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return step(frames, lengths, np.zeros((len(lengths), size), np.float32))[0]

    return evaluation.predict(dataset, scorer, batch)


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
