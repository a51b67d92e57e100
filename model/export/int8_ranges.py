"""Choose the ranges that 8 bits divide: of an LSTM's normalised frames and of its weights."""

from typing import TYPE_CHECKING

import numpy as np

from model.datasets.dataset import Dataset

if TYPE_CHECKING:
    import onnx

    from model.network.network import Network

DEVIATIONS, RESERVE = 4.0, 1.25  # frames: at least 4, or 1.25 of the largest number
BEYOND = 1e-4  # the fraction of numbers that may be beyond
SEQUENCES = 64  # whose numbers are rounded to compare limits
LIMITS = np.linspace(1, 1.25, 101)  # of frames that are compared, times the least
SHARES = np.linspace(0.7, 1, 31)  # of the largest weight of a unit


def of_frames(network: "Network", train: Dataset) -> tuple[float, float]:
    """Return a limit for normalised frames, which few of the train part's numbers are
    beyond, and how many are, in percent."""
    width = network.encoder[0][0].cell.kernel.shape[0] // network.stack
    total = int(train.offsets[-1]) * width
    most = int(BEYOND * total) + 1
    largest = np.zeros(0, np.float32)
    for block in train.blocks():
        values = np.abs(network.inputs(block)).reshape(-1)
        largest = np.concatenate([largest, values])
        largest = np.partition(largest, -min(most, len(largest)))[-most:]
    least = max(float(largest.min()), min(DEVIATIONS, RESERVE * float(largest.max())))
    random = np.random.default_rng(0)
    rows = np.sort(random.choice(len(train), min(SEQUENCES, len(train)), replace=False))
    sample = np.concatenate([train.sequence(row) for row in rows])
    limit = _least_rounded(network.inputs(sample), least or 1.0)
    return limit, 100 * int((largest > limit).sum()) / total


def _least_rounded(values: np.ndarray, least: float) -> float:
    """Return the limit at which 8 bits round the values least. It matters for data of few
    distinct values, such as black and white pixels."""
    values, counts = np.unique(np.clip(values, -least, least), return_counts=True)
    limits = least * LIMITS
    errors = [
        np.average(np.square(values - unit * np.round(values / unit)), weights=counts)
        for unit in 2 * limits / 255
    ]
    return float(limits[np.argmin(errors)])


def clip_weights(graph: "onnx.GraphProto") -> None:
    """Clip the recurrent layers' weights so that 8 bits round them least: a few large
    weights of a gate would make the steps between the others coarse."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = (node for node in graph.node if node.op_type == "LSTM")
    # A network that stacks frames uses each layer's weights twice.
    for name in {name for node in layers for name in node.input[1:3]}:
        clipped = _clip(numpy_helper.to_array(weights[name]))
        weights[name].CopyFrom(numpy_helper.from_array(clipped, name))


def _clip(weights: np.ndarray) -> np.ndarray:
    """Clip weights [D, 4 * H, F], those of each gate of a unit by themselves."""
    largest = np.abs(weights).max(-1, keepdims=True)
    best, least = weights, np.full(largest.shape, np.inf)
    for share in SHARES:
        unit = np.where(largest > 0, share * largest / 127, 1)
        rounded = unit * np.clip(np.round(weights / unit), -127, 127)
        error = np.square(rounded - weights).sum(-1, keepdims=True)
        clipped = np.clip(weights, -share * largest, share * largest)
        best = np.where(error < least, clipped, best)
        least = np.minimum(error, least)
    return best.astype(weights.dtype)
