"""Quantize an LSTM to int8 weights, about twice as fast, and measure the changes.

ONNX Runtime's dynamic quantization stores the recurrent weights as int8, and rounds each
step's activations to 8 bits. Their range is fixed (`onnx_fixed_range`), so an answer does
not depend on its batch. ONNX Runtime has no int8 kernel for the GRU.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.bundle import bundle
from model.bundle.golden import Golden, Step
from model.bundle.metadata import Metadata, Quantization, QuantizedPart
from model.datasets.dataset import Dataset
from model.evaluation import evaluation
from model.evaluation.evaluation import Predictions
from model.export import int8_ranges
from model.network import reload

if TYPE_CHECKING:
    import onnx

    from model.network.network import Network

# Limits; an int8 network that exceeds one is not published.
MAX_ERROR = 0.2  # percentage points more
MAX_CALIBRATION = 0.3  # percentage points more
MAX_CHANGE = 0.05  # of a probability
MARGIN = 2.0  # for processors that round differently
MOST = 10_000  # sequences of a part that are compared
TRIED = 64  # sequences in the batches of the test of independence
WILD = 1e6  # deviations of the frames in the same batches


class QuantizationError(ValueError):
    """A network that can't be quantized, or that changes too much by it."""


@dataclass(frozen=True)
class Plan:
    """Data for an int8 network.

    Attributes:
        train: gives the range of the frames.
        parts: by name, those on which it is compared with float32.
        required: raise an error, in place of publishing without int8, over a limit.
    """

    train: Dataset
    parts: Mapping[str, Dataset]
    required: bool = False


def check(cell: str) -> None:
    """Refuse a cell that has no int8 kernel.

    Raises:
        QuantizationError: the cell is not an LSTM.
    """
    if cell != "lstm":
        raise QuantizationError(
            f"--int8 is for LSTM networks: ONNX Runtime has no int8 {cell.upper()}"
        )


def add(
    folder: Path, network: "Network", metadata: Metadata, golden: Golden, plan: Plan
) -> Metadata:
    """Write the int8 network of a bundle and its golden answers, if no change is over its
    limit. Return the metadata with what was measured, or with the reason against it.

    Args:
        network: made by `Network.for_export`; the folder has its ONNX network.

    Raises:
        QuantizationError: a change exceeds its limit, and `plan.required`.
    """
    clip, clipped = int8_ranges.of_frames(network, plan.train)
    write(folder, network, clip)
    step = reload.onnx(folder / bundle.INT8)
    parts = {
        name: compare(folder, metadata, dataset) for name, dataset in plan.parts.items()
    }
    reasons = _excesses(parts)
    if _depends_on_batch(step, metadata, plan.train):
        reasons.append("an answer depends on its batch")
    if reasons and plan.required:
        raise QuantizationError(
            "int8 weights change too much, nothing was published: " + "; ".join(reasons)
        )
    if reasons:
        (folder / bundle.INT8).unlink()
        return metadata.model_copy(update={"int8_refused": "; ".join(reasons)})
    state = np.zeros_like(golden.state)
    answers = step(golden.frames, golden.lengths, state)
    Golden(golden.frames, golden.lengths, *answers).save(folder / bundle.INT8_GOLDEN)
    bound = MARGIN * golden.difference(step, metadata.sums)
    change = Quantization(parts=parts, clip=clip, clipped=clipped, bound=bound)
    return metadata.model_copy(update={"int8": change})


def write(folder: Path, network: "Network", clip: float) -> None:
    """Write a network with int8 recurrent weights into a bundle's folder."""
    # Imported here: they import ONNX, which a card's text doesn't need.
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from model.export import onnx_graph
    from model.export.onnx_fixed_range import FixedRange

    logging.getLogger("root").addFilter(
        _quiet
    )  # hides advice for other kinds of networks
    try:
        graph = onnx_graph.build(network, FixedRange(clip))
        int8_ranges.clip_weights(graph.graph)
        _copy_shared_weights(graph.graph)
        quantize_dynamic(
            graph,
            folder / bundle.INT8,
            op_types_to_quantize=["LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.getLogger("root").removeFilter(_quiet)
    quantized = onnx.load(str(folder / bundle.INT8))
    _share_equal_weights(quantized.graph)
    onnx.save(quantized, str(folder / bundle.INT8))


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


def compare(folder: Path, metadata: Metadata, dataset: Dataset) -> QuantizedPart:
    """Measure what the int8 weights of a bundle change on a part of the data."""
    if len(dataset) > MOST:
        random = np.random.default_rng(0)
        dataset = dataset.take(np.sort(random.choice(len(dataset), MOST, False)))
    before, after = (
        _predict(reload.onnx(folder / name), dataset, metadata)
        for name in (bundle.NETWORK, bundle.INT8)
    )
    exact, metrics = (
        evaluation.compute_metrics(part, metadata.classes) for part in (before, after)
    )
    same = before.scores.argmax(1) == after.scores.argmax(1)
    changes = np.abs(after.scores - before.scores)
    return QuantizedPart(
        count=metrics.count,
        error=metrics.error,
        calibration_error=metrics.calibration_error,
        float32_error=exact.error,
        float32_calibration_error=exact.calibration_error,
        same_class=100 * float(same.mean()),
        largest=float(changes.max()),
        mean=float(changes.mean()),
    )


def section(metadata: Metadata) -> str:
    """Return the card's section on int8, empty for a network that was not quantized."""
    if metadata.int8_refused:
        return f"## int8\n\nThere are no int8 weights. {metadata.int8_refused}."
    change = metadata.int8
    if change is None:
        return ""
    rows = "\n".join(
        f"| {name.capitalize()} ({part.count:,})"
        f" | {part.float32_error:.2f} % | {part.error:.2f} %"
        f" | {part.float32_calibration_error:.2f} % | {part.calibration_error:.2f} %"
        f" | {part.same_class:.2f} % | {part.largest:.4f} | {part.mean:.5f} |"
        for name, part in change.parts.items()
    )
    return f"""## int8

`assets.extra/{bundle.INT8.name}` is the same network with int8 weights. The service uses it
where it is faster (`UNROLLED_PRECISION`).

| Part | Error, float32 | int8 | ECE, float32 | int8 | Same class | Largest change of a probability | Mean |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

At most {MAX_ERROR:g} points of error, {MAX_CALIBRATION:g} points of ECE and a change of {MAX_CHANGE:g} are
allowed. An answer doesn't depend on its batch, bit for bit. Normalised frames are clipped to
{change.clip:.3g} deviations: {change.clipped:.2g} % of the numbers in the train part are beyond."""


def _excesses(parts: Mapping[str, QuantizedPart]) -> list[str]:
    """Return the changes that exceed a limit."""
    return [
        f"On the {name} part: {quantity} {value:.3g} (at most {limit:g} is allowed)"
        for name, part in parts.items()
        for quantity, value, limit in (
            (
                "percentage points of error more:",
                part.error - part.float32_error,
                MAX_ERROR,
            ),
            (
                "percentage points of expected calibration error (ECE) more:",
                part.calibration_error - part.float32_calibration_error,
                MAX_CALIBRATION,
            ),
            ("change of a probability:", part.largest, MAX_CHANGE),
        )
        if not value <= limit
    ]


def _depends_on_batch(step: Step, metadata: Metadata, dataset: Dataset) -> bool:
    """True if an answer or a state differs in a bit alone, in another order beside huge
    frames, or in chunks."""
    random = np.random.default_rng(0)
    rows = random.choice(len(dataset), min(TRIED, len(dataset)), replace=False)
    frames, lengths = evaluation.pad([dataset.sequence(row) for row in rows])
    state = np.zeros((len(rows), metadata.state_size), np.float32)
    probabilities, after = step(frames, lengths, state)
    expected = Golden(frames, lengths, probabilities, after)
    deviation = WILD / np.array(metadata.normalisation.scale, np.float32)

    def in_another_batch(frames, lengths, state):
        order = random.permutation(len(frames))
        wild = random.normal(size=frames.shape).astype(np.float32) * deviation
        answers = step(
            np.concatenate([frames[order], wild]),
            np.concatenate([lengths[order], lengths]),
            np.concatenate([state[order], state]),
        )
        return tuple(answer[np.argsort(order)] for answer in answers)

    return any(expected.difference(run) for run in (step, in_another_batch))


def _predict(step: Step, dataset: Dataset, metadata: Metadata) -> Predictions:
    def scorer(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        state = np.zeros((len(lengths), metadata.state_size), np.float32)
        return step(frames, lengths, state)[0]

    return evaluation.predict(dataset, scorer)


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
