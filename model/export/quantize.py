"""Quantize a network to int8 weights, about twice as fast, and measure the changes.

ONNX Runtime's dynamic quantization stores the recurrent weights as int8, and rounds each
step's activations to 8 bits by their range. That range is computed over the whole
batch, so a prediction depends a little on its batch neighbours. Both changes are
measured before a bundle is published. ONNX Runtime has no int8 kernel for the GRU.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.bundle import bundle
from model.bundle.golden import Golden, Step
from model.bundle.metadata import Metadata, Quantization
from model.datasets.dataset import Dataset
from model.evaluation import evaluation
from model.evaluation.evaluation import Predictions
from model.network import reload

if TYPE_CHECKING:
    import onnx

# Limits; a bundle that exceeds one is refused.
MAX_ERROR = 0.5  # percentage points more
MAX_CALIBRATION = 0.5  # percentage points more
MAX_CHANGE = 0.1  # of a probability, by the weights or by batch neighbours
MARGIN = 2.0  # for processors that round differently
BATCH_SIZE = 32


class QuantizationError(ValueError):
    """A network that can't be quantized, or that changes too much by it."""


def check(cell: str) -> None:
    """Refuse a cell that has no int8 kernel.

    Raises:
        QuantizationError: the cell is not an LSTM.
    """
    if cell != "lstm":
        raise QuantizationError(
            f"--int8 is for LSTM networks: ONNX Runtime has no int8 {cell.upper()}"
        )


def write(folder: Path) -> None:
    """Quantize the recurrent weights of a bundle's ONNX network."""
    # Imported here: they import ONNX, which a card's text doesn't need.
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("root").addFilter(
        _quiet
    )  # hides advice for other kinds of networks
    try:
        network = onnx.load(str(folder / bundle.NETWORK))
        _copy_shared_weights(network.graph)
        quantize_dynamic(
            network,
            folder / bundle.INT8,
            op_types_to_quantize=["LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.getLogger("root").removeFilter(_quiet)
    network = onnx.load(str(folder / bundle.INT8))
    _share_equal_weights(network.graph)
    onnx.save(network, str(folder / bundle.INT8))


def _copy_shared_weights(graph: "onnx.GraphProto") -> None:
    """Give each layer weights of its own: the quantization changes them in place, and a
    network that stacks frames uses each layer's weights twice."""
    used: set[str] = set()
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "LSTM":
            continue
        for index in (1, 2):
            if node.input[index] in used:
                copy = graph.initializer.add()
                copy.CopyFrom(weights[node.input[index]])
                copy.name = node.input[index] = f"{copy.name}_again"
            used.add(node.input[index])


def _share_equal_weights(graph: "onnx.GraphProto") -> None:
    """Keep one of the weights that are equal."""
    names: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    for tensor in list(graph.initializer):
        name, tensor.name = tensor.name, ""
        content = tensor.SerializeToString()
        tensor.name = name
        if names.setdefault(content, name) != name:
            shared[name] = names[content]
            graph.initializer.remove(tensor)
    for node in graph.node:
        node.input[:] = [shared.get(name, name) for name in node.input]


def compare(
    folder: Path, metadata: Metadata, golden: Golden, part: str, dataset: Dataset
) -> Quantization:
    """Measure what the int8 weights change on a part of the data.

    Raises:
        QuantizationError: a change exceeds its limit; the message lists all such changes.
    """
    float32 = reload.onnx(folder / bundle.NETWORK)
    int8 = reload.onnx(folder / bundle.INT8)
    size = metadata.state_size
    before = _predict(float32, dataset, size, 1)
    after = _predict(int8, dataset, size, 1)
    batched = _predict(int8, dataset, size, BATCH_SIZE)
    same = before.scores.argmax(1) == after.scores.argmax(1)
    metrics = evaluation.compute_metrics(after, metadata.classes)
    result = Quantization(
        part=part,
        error=metrics.error,
        calibration_error=metrics.calibration_error,
        same_class=100 * float(same.mean()),
        largest=float(np.abs(after.scores - before.scores).max()),
        mates=float(np.abs(batched.scores - after.scores).max()),
        bound=MARGIN * golden.difference(int8, metadata.sums),
    )
    exact = evaluation.compute_metrics(before, metadata.classes)
    _check_limits(result, exact.error, exact.calibration_error)
    return result


def section(metadata: Metadata) -> str:
    """Return the card's section on int8, empty without such a network."""
    change = metadata.int8
    if change is None:
        return ""
    exact = metadata.training.parts[change.part]
    return f"""## int8

`assets.extra/{bundle.INT8.name}` is the same network with int8 weights; the service uses it
with `UNROLLED_PRECISION=int8`. On the {change.part} part:

| | float32 | int8 | at most |
| --- | --- | --- | --- |
| Error | {exact.error:.2f} % | {change.error:.2f} % | {MAX_ERROR:g} points more |
| Expected calibration error (ECE) | {exact.calibration_error:.2f} % | {change.calibration_error:.2f} % | {MAX_CALIBRATION:g} points more |
| Same class as float32 | | {change.same_class:.2f} % | |
| Largest change of a probability | | {change.largest:.4f} | {MAX_CHANGE:g} |
| Largest change by batch neighbours | | {change.batch_neighbours:.4f} | {MAX_CHANGE:g} |

Activations are rounded to 8 bits over the range of the whole batch: a prediction depends a
little on its batch neighbours, and more if their frames hold far larger numbers."""


def _check_limits(change: Quantization, error: float, calibration_error: float) -> None:
    excesses = [
        f"{quantity} {value:.3g} (at most {limit:g} is allowed)"
        for quantity, value, limit in (
            ("percentage points of error more:", change.error - error, MAX_ERROR),
            (
                "percentage points of expected calibration error (ECE) more:",
                change.calibration_error - calibration_error,
                MAX_CALIBRATION,
            ),
            ("change of a probability:", change.largest, MAX_CHANGE),
            (
                "change of a probability by batch neighbours:",
                change.batch_neighbours,
                MAX_CHANGE,
            ),
        )
        if not value <= limit
    ]
    if excesses:
        raise QuantizationError(
            f"int8 weights change too much, nothing was published: {'; '.join(excesses)}"
        )


def _predict(
    step: Step, dataset: Dataset, state_size: int, batch_size: int
) -> Predictions:
    def scorer(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return step(frames, lengths, np.zeros((len(lengths), state_size), np.float32))[
            0
        ]

    return evaluation.predict(dataset, scorer, batch_size)


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
