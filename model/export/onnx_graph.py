"""Build the ONNX graph of a network, node by node.

A converter would turn a masked cell into a general loop, 5 to 20 times slower than
ONNX Runtime's fused operators `LSTM` and `GRU` (ONNX opset 14, see the operators'
specification), so the graph uses them directly. The gates' order differs: Keras has
i f c o and z r h; ONNX has i o f c and z r h.

    frames [B, T, F], lengths [B] (, state [B, S]) -> probabilities (, next_state)
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.network.network import Network

OPSET, IR = 17, 8


def build(network: Network) -> onnx.ModelProto:
    """Build the graph of `network.probabilities`.

    Unless the network is bidirectional, the state goes in and out; zeros start a
    sequence.
    """
    graph = _Graph()
    config = network.config
    stepped = config.state_size > 0
    x = _normalise(graph, network)  # [T, B, F]
    vectors = 2 if config.cell == "lstm" else 1
    finals: list[str] = []
    states, total, count = _states(graph, config) if stepped else ([], "", "")
    for index, directions in enumerate(network.encoder):
        initial = states[index * vectors : (index + 1) * vectors]
        x, *final = _layer(graph, config, directions, x, initial)
        finals += final
    sums: list[str] = []
    if network.task == "classify":
        width = config.hidden * len(network.encoder[-1])
        last = _joined(graph, finals[-vectors], width)
        parts = {"last": last}
        if network.read != "last":
            parts["mean"], *sums = _mean(graph, x, last, total, count)
        x = last
        if network.read != "last":
            read = [parts[name] for name in network.read.split("+")]
            x = graph.add("Concat", read, axis=1) if len(read) > 1 else read[0]
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
    if stepped:
        stacked = graph.add("Concat", finals, axis=0)  # [L * V, B, H]
        rows = graph.add("Transpose", [stacked], perm=[1, 0, 2])
        size = graph.constant([0, config.hidden * len(finals)], np.int64)
        names = [] if sums else ["next_state"]
        vectors_after = graph.add("Reshape", [rows, size], names)
        if sums:
            graph.add("Concat", [vectors_after, *sums], ["next_state"], axis=1)
        inputs.append(("state", TensorProto.FLOAT, [batch, config.state_size]))
        outputs.append(("next_state", TensorProto.FLOAT, [batch, config.state_size]))
    return graph.model(inputs, outputs)


def _normalise(graph: "_Graph", network: Network) -> str:
    """Scale frames, and put time first. Frames past a length are never read."""
    mean = graph.constant(network.mean.numpy())
    scale = graph.constant(network.scale.numpy())
    x = graph.add("Mul", [graph.add("Sub", ["frames", mean]), scale])
    return graph.add("Transpose", [x], perm=[1, 0, 2])


def _states(graph: "_Graph", config) -> tuple[list[str], str, str]:
    """Split the rows of `state` into vectors [1, B, H], layer by layer, and, if the mean
    is read, the sum of the outputs [B, H] and their number [B, 1]."""
    vectors, total, steps = "state", "", ""
    size = config.state_size
    if config.read not in (None, "last"):
        size -= config.hidden + 1
        sizes = graph.constant([size, config.hidden, 1], np.int64)
        vectors, total, steps = "vectors", "total", "steps"
        graph.add("Split", ["state", sizes], [vectors, total, steps], axis=1)
    count = size // config.hidden
    shape = graph.constant([0, count, config.hidden], np.int64)
    stacked = graph.add(
        "Transpose", [graph.add("Reshape", [vectors, shape])], perm=[1, 0, 2]
    )
    names = [f"before_{i}" for i in range(count)]
    graph.add("Split", [stacked, graph.constant([1] * count, np.int64)], names, axis=0)
    return names, total, steps


def _mean(
    graph: "_Graph", x: str, last: str, total: str, count: str
) -> tuple[str, str, str]:
    """Return the mean of outputs x [T, B, W] over valid steps, their sum and number.

    The sum goes on step after step from `total`, so that the order of the additions does
    not depend on how a sequence is cut into calls. Outputs past a length aren't read.

    Args:
        last: [B, W], the last output.
        total, count: [B, W] and [B, 1] of earlier calls; "" for whole sequences.
    """
    total = total or graph.add("Sub", [last, last])  # zeros
    first = graph.add("Unsqueeze", [total, graph.constant([0], np.int64)])
    sums = graph.add("Concat", [first, x], axis=0)  # [1 + T, B, W]
    sums = graph.add("CumSum", [sums, graph.constant(0, np.int64)])
    rows = graph.add("Cast", ["lengths"], to=TensorProto.INT64)
    rows = graph.add("Reshape", [rows, graph.constant([1, -1, 1], np.int64)])
    rows = graph.add("Expand", [rows, graph.add("Shape", [first])])  # [1, B, W]
    total = graph.squeeze(graph.add("GatherElements", [sums, rows], axis=0), 0)
    steps = graph.add("Cast", ["lengths"], to=TensorProto.FLOAT)
    steps = graph.add("Reshape", [steps, graph.constant([-1, 1], np.int64)])
    count = graph.add("Add", [count, steps]) if count else steps
    divisor = graph.add("Max", [count, graph.constant(1.0)])
    return graph.add("Div", [total, divisor]), total, count


def _layer(
    graph: "_Graph", config, directions, x: str, initial: list[str]
) -> list[str]:
    """Return outputs [T, B, D * H], last hidden [D, B, H] and, for an LSTM, cell vectors."""
    weights = [_onnx_weights(config, *layer.get_weights()) for layer in directions]
    kernel, recurrent, bias = (
        graph.constant(np.stack(part)) for part in zip(*weights, strict=True)
    )
    options = {
        "hidden_size": config.hidden,
        "direction": "bidirectional" if len(directions) == 2 else "forward",
    }
    inputs = [x, kernel, recurrent, bias, "lengths", *initial]
    outputs = [graph.name("Y"), graph.name("Y_h")]
    if config.cell == "lstm":
        outputs.append(graph.name("Y_c"))
    else:
        options["linear_before_reset"] = int(config.reset_after)
    graph.add(config.cell.upper(), inputs, outputs, **options)
    y, *final = outputs  # [T, D, B, H]
    if len(directions) == 1:
        return [graph.squeeze(y, 1), *final]  # no copy
    y = graph.add("Transpose", [y], perm=[0, 2, 1, 3])  # [T, B, D, H]
    width = graph.constant([0, 0, config.hidden * len(directions)], np.int64)
    return [graph.add("Reshape", [y, width]), *final]


def _joined(graph: "_Graph", hidden: str, width: int) -> str:
    """[D, B, H] -> [B, D * H]."""
    x = graph.add("Transpose", [hidden], perm=[1, 0, 2])
    return graph.add("Reshape", [x, graph.constant([0, width], np.int64)])


def _onnx_weights(config, kernel, recurrent, bias):
    """Return W [G * H, F], R [G * H, H], B [2 * G * H] in ONNX's order of gates."""
    order = [0, 3, 1, 2] if config.cell == "lstm" else [0, 1, 2]

    def gates(values):
        parts = np.split(values, len(order), -1)
        return np.concatenate([parts[gate] for gate in order], -1)

    outer, inner = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    bias = np.concatenate([gates(outer), gates(inner)])
    return gates(kernel).T, gates(recurrent).T, bias


class _Graph:
    """Collects nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def add(self, kind: str, inputs, outputs=(), **attributes) -> str:
        """Add a node, and return the name of its first output."""
        outputs = list(outputs) or [self.name(kind)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def constant(self, value, dtype=np.float32) -> str:
        name = self.name("constant")
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def squeeze(self, name: str, axis: int) -> str:
        return self.add("Squeeze", [name, self.constant([axis], np.int64)])

    def model(self, inputs, outputs) -> onnx.ModelProto:
        values = [
            [helper.make_tensor_value_info(*value) for value in side]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "unrolled", *values, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
        )
        onnx.checker.check_model(model, full_check=True)
        return model
