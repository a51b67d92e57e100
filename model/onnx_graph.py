"""The network's weights as an ONNX graph, built node by node.

A converter would turn a masked cell into a general loop, 5 to 20 times slower
than ONNX Runtime's fused `LSTM` and `GRU` operators (ONNX opset 14, see the
operators' specification), so the graph names them directly. Gates lie in
another order there: Keras has i f c o and z r h; ONNX has i o f c and z r h.

    frames [B, T, F], lengths [B] (, state [B, S]) -> probabilities (, next_state)
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .network import Network

OPSET, IR = 17, 8


def build(network: Network) -> onnx.ModelProto:
    """The graph of `network.probabilities`, with the state in and out of it
    where the network can be stepped (zeros begin a sequence)."""
    graph = _Graph()
    config = network.config
    stepped = config.state_size > 0
    x = _normalise(graph, network)  # [T, B, F]
    vectors = 2 if config.cell == "lstm" else 1
    finals: list[str] = []
    if stepped:
        states = [f"before_{i}" for i in range(config.layers * vectors)]
        sizes = graph.constant([config.hidden] * len(states), np.int64)
        graph.add("Split", ["state", sizes], states, axis=1)
    for index, ways in enumerate(network.encoder):
        initial = ["", ""]
        if stepped:
            own = states[index * vectors : (index + 1) * vectors]
            initial[:vectors] = [graph.unsqueeze(name, 0) for name in own]
        x, hidden, cell = _layer(graph, config, ways, x, initial)
        finals += [hidden, cell][:vectors]
    if network.task == "classify":
        x = _joined(graph, finals[-vectors], config.hidden * len(network.encoder[-1]))
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
        graph.add(
            "Concat", [graph.squeeze(f, 0) for f in finals], ["next_state"], axis=1
        )
        inputs.append(("state", TensorProto.FLOAT, [batch, config.state_size]))
        outputs.append(("next_state", TensorProto.FLOAT, [batch, config.state_size]))
    return graph.model(inputs, outputs)


def _normalise(graph: "_Graph", network: Network) -> str:
    """Scaled frames in time-major order, zero past each length."""
    mean = graph.constant(network.mean.numpy())
    scale = graph.constant(network.scale.numpy())
    x = graph.add("Mul", [graph.add("Sub", ["frames", mean]), scale])
    shape = graph.add("Shape", ["frames"], start=1, end=2)
    steps = graph.squeeze(graph.add("Cast", [shape], to=TensorProto.INT32), 0)
    zero, one = graph.constant(0, np.int32), graph.constant(1, np.int32)
    places = graph.unsqueeze(graph.add("Range", [zero, steps, one]), 0)
    valid = graph.add("Less", [places, graph.unsqueeze("lengths", 1)])
    x = graph.add("Where", [graph.unsqueeze(valid, 2), x, graph.constant(0.0)])
    return graph.add("Transpose", [x], perm=[1, 0, 2])


def _layer(graph: "_Graph", config, ways, x: str, initial: list[str]):
    """Outputs [T, B, D * H], last hidden [D, B, H] and cell vectors [D, B, H]."""
    weights = [_onnx_weights(config, *way.get_weights()) for way in ways]
    kernel, recurrent, bias = (
        graph.constant(np.stack(part)) for part in zip(*weights, strict=True)
    )
    options = {
        "hidden_size": config.hidden,
        "direction": "bidirectional" if len(ways) == 2 else "forward",
    }
    inputs = [x, kernel, recurrent, bias, "lengths", initial[0]]
    outputs = [graph.name("Y"), graph.name("Y_h")]
    if config.cell == "lstm":
        inputs.append(initial[1])
        outputs.append(graph.name("Y_c"))
    else:
        options["linear_before_reset"] = int(config.reset_after)
    while not inputs[-1]:
        inputs.pop()
    graph.add(config.cell.upper(), inputs, outputs, **options)
    y, hidden, cell = (*outputs, "")[:3]
    y = graph.add("Transpose", [y], perm=[0, 2, 1, 3])  # [T, D, B, H] -> [T, B, D, H]
    width = graph.constant([0, 0, config.hidden * len(ways)], np.int64)
    return graph.add("Reshape", [y, width]), hidden, cell


def _joined(graph: "_Graph", hidden: str, width: int) -> str:
    """[D, B, H] -> [B, D * H]."""
    x = graph.add("Transpose", [hidden], perm=[1, 0, 2])
    return graph.add("Reshape", [x, graph.constant([0, width], np.int64)])


def _onnx_weights(config, kernel, recurrent, bias):
    """W [G * H, F], R [G * H, H], B [2 * G * H] in ONNX's order of gates."""
    order = [0, 3, 1, 2] if config.cell == "lstm" else [0, 1, 2]

    def gates(values):
        parts = np.split(values, len(order), -1)
        return np.concatenate([parts[gate] for gate in order], -1)

    outer, inner = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    bias = np.concatenate([gates(outer), gates(inner)])
    return gates(kernel).T, gates(recurrent).T, bias


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def add(self, kind: str, inputs, outputs=(), **attributes) -> str:
        """A node; the name of its first output."""
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

    def unsqueeze(self, name: str, axis: int) -> str:
        return self.add("Unsqueeze", [name, self.constant([axis], np.int64)])

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
