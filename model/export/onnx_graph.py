"""Build the ONNX graph of a network, node by node.

A converter would turn a masked cell into a general loop, 5 to 20 times slower than
ONNX Runtime's fused operators `LSTM` and `GRU` (ONNX opset 14, see the operators'
specification), so the graph uses them directly. The gates' order differs: Keras has
i f c o and z r h; ONNX has i o f c and z r h.

    frames [B, T, F], lengths [B] (, state [B, S]) -> probabilities (, next_state)
"""

import numpy as np
import onnx
from onnx import TensorProto

from model.config import NetworkConfig
from model.export import onnx_fixed_range, onnx_stacking
from model.export.onnx_builder import Graph
from model.export.onnx_fixed_range import FixedRange
from model.network.network import Network


def build(network: Network, ranges: FixedRange | None = None) -> onnx.ModelProto:
    """Build the graph of `network.probabilities`.

    Unless the network is bidirectional, the state goes in and out; zeros start a
    sequence.

    Args:
        ranges: of an LSTM that will be quantized; see `onnx_fixed_range`.
    """
    graph = Graph()
    if network.state_size and network.stack > 1:
        x, *after = _step_of_stacks(graph, network, ranges)
    else:
        x, *after = _step(graph, network, ranges)
    kernel, bias = (graph.constant(v) for v in network.head.get_weights())
    x = graph.add("Add", [graph.add("MatMul", [x, kernel]), bias])
    x = graph.add("Div", [x, graph.constant(network.temperature.numpy())])
    x = graph.add(
        "Softmax", [x], ["probabilities"] * (network.task != "label"), axis=-1
    )
    batch, time, classes = "batch", "time", network.head.units
    shape = [batch, classes]
    if network.task == "label":
        graph.add("Transpose", [x], ["probabilities"], perm=[1, 0, 2])
        shape = [batch, time, classes]
    inputs = [
        ("frames", TensorProto.FLOAT, [batch, time, network.features]),
        ("lengths", TensorProto.INT32, [batch]),
    ]
    outputs = [("probabilities", TensorProto.FLOAT, shape)]
    if network.state_size:
        _pack(graph, network.config, ranges, *after)
        inputs.append(("state", TensorProto.FLOAT, [batch, network.state_size]))
        outputs.append(("next_state", TensorProto.FLOAT, [batch, network.state_size]))
    return graph.model(inputs, outputs)


def _step(
    graph: Graph, network: Network, ranges: FixedRange | None
) -> tuple[str, list[str], list[str]]:
    """Run a network on the input frames; see `Network.step`.

    Returns:
        what the head reads, and the vectors and the sums after the last valid step.
    """
    vectors, sums = _split(graph, network, ranges) if network.state_size else ([], [])
    if network.stack == 1:
        x, lengths = _normalise(graph, network, "frames"), "lengths"
        x = graph.add("Transpose", [x], perm=[1, 0, 2])
    else:  # whole sequences
        x, steps = onnx_stacking.pad(graph, network.stack)
        x = _stacks(graph, network, x, onnx_stacking.input_lengths(graph))
        lengths = graph.squeeze(graph.cast(steps, TensorProto.INT32), 1)
    layers = _layers(graph, network, ranges)
    x, vectors = _run(graph, network.config, layers, x, lengths, vectors, ranges)
    if network.task == "label":
        return x, vectors, []
    last = _last(graph, network, vectors, ranges)
    if network.read != "last":
        zeros = "" if sums else graph.add("Sub", [last, last])
        sums = _add(graph, x, lengths, *(sums or [zeros, ""]))
    return _read(graph, network, last, sums), vectors, sums


def _step_of_stacks(
    graph: Graph, network: Network, ranges: FixedRange | None
) -> tuple[str, list[str], list[str]]:
    """Run a network on the full stacks, and then on the rest as an incomplete one.

    A row without a full stack computes one all the same, and drops what comes of it:
    operators don't agree on a length of 0.
    """
    config, size = network.config, network.stack
    before, (*sums, window, count) = _split(graph, network, ranges)
    pieces = onnx_stacking.cut(graph, window, count, size, network.features)
    layers = _layers(graph, network, ranges)
    x = _stacks(graph, network, pieces.full)
    lengths = graph.add("Max", [pieces.steps, graph.integer(1)])
    lengths = graph.squeeze(graph.cast(lengths, TensorProto.INT32), 1)
    x, after = _run(graph, config, layers, x, lengths, before, ranges)
    after = _where(graph, pieces.steps, after, before)
    if sums:
        sums = _add(graph, x, pieces.steps, *sums)

    x = _stacks(graph, network, pieces.rest, pieces.left)
    x, answer = _run(graph, config, layers, x, "", after, ranges)
    answer = _where(graph, pieces.left, answer, after)
    all_sums = sums
    if sums:
        has_rest = graph.add("Min", [pieces.left, graph.integer(1)])
        all_sums = _add(graph, x, has_rest, *sums)
    last = _last(graph, network, answer, ranges)
    read = _read(graph, network, last, all_sums)
    return read, after, [*sums, pieces.window, pieces.number]


def _stacks(graph: Graph, network: Network, frames: str, lengths: str = "") -> str:
    """Return raw frames [B, N * K, F] as normalised steps [N, B, K * F].

    Args:
        lengths: [B, 1], past which the frames are zero; "" if nothing reads those.
    """
    x = _normalise(graph, network, frames)
    if lengths:
        x = onnx_stacking.mask(graph, x, lengths)
    return onnx_stacking.join(graph, x, network.stack, network.features)


def _where(graph: Graph, steps: str, after: list[str], before: list[str]) -> list[str]:
    """Return the vectors `before` for rows of no steps [B, 1], and `after` for others."""
    valid = graph.add("Less", [graph.integer(0), steps])
    pairs = zip(after, before, strict=True)
    return [graph.add("Where", [valid, new, old]) for new, old in pairs]


def _normalise(graph: Graph, network: Network, frames: str) -> str:
    """Scale frames, or embed ids. Those past a length are never read."""
    if network.columns:
        return _embed(graph, network, frames)
    mean = graph.constant(network.mean.numpy())
    scale = graph.constant(network.scale.numpy())
    return graph.add("Mul", [graph.add("Sub", [frames, mean]), scale])


def _embed(graph: Graph, network: Network, ids: str) -> str:
    """Return the embeddings and numbers [B, T, W]; see `Network._embed`."""
    parts, tables = [], iter(network.embeddings)
    for index, column in enumerate(network.columns):
        if not column.size:
            number = graph.add("Gather", [ids, graph.integer([index])], axis=2)
            mean, scale = (v.numpy()[index] for v in (network.mean, network.scale))
            number = graph.add("Sub", [number, graph.constant(mean)])
            parts.append(graph.add("Mul", [number, graph.constant(scale)]))
            continue
        table = next(tables)
        limits = [graph.constant(limit) for limit in (0, column.size - 1)]
        places = graph.add("Gather", [ids, graph.integer(index)], axis=2)
        places = graph.add("Clip", [places, *limits])
        places = graph.cast(places, TensorProto.INT32)
        parts.append(graph.add("Gather", [graph.constant(table.numpy()), places]))
    return graph.add("Concat", parts, axis=2) if len(parts) > 1 else parts[0]


def _split(
    graph: Graph, network: Network, ranges: FixedRange | None
) -> tuple[list[str], list[str]]:
    """Split the rows of `state` into vectors [1, B, H], layer by layer, and the other
    parts [B, ...]: if the mean is read, the sum of the outputs and their number; with
    stacks, the last frames and the size of the rest."""
    hidden, vectors, others = network.config.hidden, "state", []
    count = network.config.layers * (2 if network.config.cell == "lstm" else 1)
    sizes = [] if network.read == "last" else [hidden, 1]
    if network.stack > 1:
        sizes += [(network.stack - 1) * network.features, 1]
    if sizes:
        vectors, *others = (graph.name("part") for _ in range(1 + len(sizes)))
        parts = graph.integer([count * hidden, *sizes])
        graph.add("Split", ["state", parts], [vectors, *others], axis=1)
    shape = graph.integer([0, count, hidden])
    stacked = graph.add(
        "Transpose", [graph.add("Reshape", [vectors, shape])], perm=[1, 0, 2]
    )
    if ranges is not None:
        stacked = ranges.vectors(graph, stacked, count)
    names = [f"before_{i}" for i in range(count)]
    graph.add("Split", [stacked, graph.integer([1] * count)], names, axis=0)
    return names, others


def _pack(
    graph: Graph,
    config: NetworkConfig,
    ranges: FixedRange | None,
    vectors: list[str],
    others: list[str],
) -> None:
    """Join the parts of the state as `next_state`; the inverse of `_split`."""
    stacked = graph.add("Concat", vectors, axis=0)  # [L * V, B, H]
    if ranges is not None:
        stacked = onnx_fixed_range.cut(graph, stacked, 2)
    rows = graph.add("Transpose", [stacked], perm=[1, 0, 2])
    size = graph.integer([0, config.hidden * len(vectors)])
    names = [] if others else ["next_state"]
    packed = graph.add("Reshape", [rows, size], names)
    if others:
        graph.add("Concat", [packed, *others], ["next_state"], axis=1)


def _add(graph: Graph, x: str, lengths: str, total: str, count: str) -> list[str]:
    """Return the sum of outputs x [T, B, W] of valid steps, added to `total`, and their
    number, added to `count`.

    The sum goes on step after step, so that the order of the additions does not depend
    on how a sequence is cut into calls. Outputs past a length aren't read.

    Args:
        lengths: [B] or [B, 1].
        total, count: [B, W], and [B, 1] or "" for zero.
    """
    first = graph.add("Unsqueeze", [total, graph.integer([0])])
    sums = graph.add("Concat", [first, x], axis=0)  # [1 + T, B, W]
    sums = graph.add("CumSum", [sums, graph.integer(0)])
    rows = graph.cast(lengths, TensorProto.INT64)
    rows = graph.add("Reshape", [rows, graph.integer([1, -1, 1])])
    rows = graph.add("Expand", [rows, graph.add("Shape", [first])])  # [1, B, W]
    total = graph.squeeze(graph.add("GatherElements", [sums, rows], axis=0), 0)
    steps = graph.cast(lengths, TensorProto.FLOAT)
    steps = graph.add("Reshape", [steps, graph.integer([-1, 1])])
    return [total, graph.add("Add", [count, steps]) if count else steps]


def _read(graph: Graph, network: Network, last: str, sums: list[str]) -> str:
    """Return what the classifier reads [B, W]: the last output, the mean, or both."""
    if network.read == "last":
        return last
    total, count = sums
    divisor = graph.add("Max", [count, graph.constant(1.0)])
    parts = {"last": last, "mean": graph.add("Div", [total, divisor])}
    read = [parts[name] for name in network.read.split("+")]
    return graph.add("Concat", read, axis=1) if len(read) > 1 else read[0]


def _last(
    graph: Graph, network: Network, vectors: list[str], ranges: FixedRange | None
) -> str:
    """Return the last output [B, W]: the top layer's hidden vectors [D, B, H], joined."""
    hidden = vectors[-2 if network.config.cell == "lstm" else -1]
    if ranges is not None:
        hidden = onnx_fixed_range.cut(graph, hidden, 2)
    width = network.config.hidden * len(network.encoder[-1])
    x = graph.add("Transpose", [hidden], perm=[1, 0, 2])
    return graph.add("Reshape", [x, graph.integer([0, width])])


def _layers(
    graph: Graph, network: Network, ranges: FixedRange | None
) -> list[list[str]]:
    """Add the weights of each layer; return their names."""
    names = []
    for index, directions in enumerate(network.encoder):
        parts = [_onnx_weights(network.config, *x.get_weights()) for x in directions]
        if ranges is not None:
            ways = len(directions) if index else 1
            parts = [ranges.weights(ways, *part) for part in parts]
        stacked = map(np.stack, zip(*parts, strict=True))
        names.append([graph.constant(part) for part in stacked])
    return names


def _run(
    graph: Graph,
    config: NetworkConfig,
    layers: list[list[str]],
    x: str,
    lengths: str,
    before: list[str],
    ranges: FixedRange | None,
) -> tuple[str, list[str]]:
    """Run the layers on x [T, B, F]. Return outputs [T, B, D * H], and of each layer the
    last hidden and, for an LSTM, the last cell vectors [D, B, H], or [D, B, H + 2] with
    `ranges`.

    Args:
        layers: weights, of `_layers`.
        lengths: "" if all steps are valid.
        before: the vectors of earlier steps; [] starts with zeros.
    """
    ways = 2 if config.bidirectional else 1
    units = config.hidden + (0 if ranges is None else onnx_fixed_range.UNITS)
    options = {
        "hidden_size": units,
        "direction": "bidirectional" if ways == 2 else "forward",
    }
    vectors = 2 if config.cell == "lstm" else 1
    if config.cell == "gru":
        options["linear_before_reset"] = int(config.reset_after)
    if ranges is not None:
        x = ranges.frames(graph, x)
        before = before or ranges.zeros(graph, x, ways, config.hidden) * len(layers)
    after, y = [], x
    for index, weights in enumerate(layers):
        initial = before[index * vectors : (index + 1) * vectors]
        outputs = [graph.name(name) for name in ("Y", "Y_h", "Y_c")[: 1 + vectors]]
        inputs = [x, *weights, lengths, *initial]
        graph.add(config.cell.upper(), inputs, outputs, **options)
        y, *final = outputs  # [T, D, B, H]
        after += final
        if ways == 1:
            x = graph.squeeze(y, 1)  # no copy
        else:
            y = graph.add("Transpose", [y], perm=[0, 2, 1, 3])  # [T, B, D, H]
            x = graph.add("Reshape", [y, graph.integer([0, 0, units * ways])])
    if ranges is not None:
        y = onnx_fixed_range.cut(graph, y, 3)
        if ways == 1:
            x = graph.squeeze(y, 1)
        else:
            width = graph.integer([0, 0, config.hidden * ways])
            x = graph.add("Reshape", [y, width])
    return x, after


def _onnx_weights(config, kernel, recurrent, bias):
    """Return W [G * H, F], R [G * H, H], B [2 * G * H] in ONNX's order of gates."""
    order = [0, 3, 1, 2] if config.cell == "lstm" else [0, 1, 2]

    def gates(values):
        parts = np.split(values, len(order), -1)
        return np.concatenate([parts[gate] for gate in order], -1)

    outer, inner = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    bias = np.concatenate([gates(outer), gates(inner)])
    return gates(kernel).T, gates(recurrent).T, bias
