"""Collect the nodes and constants of an ONNX graph, and write it as a model."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR = 17, 8


class Graph:
    """The nodes and the constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, kind: str) -> str:
        """Return a name that no node has yet."""
        self.count += 1
        return f"{kind}_{self.count}"

    def add(self, kind: str, inputs, outputs=(), **attributes) -> str:
        """Add a node, and return the name of its first output.

        Args:
            inputs: names, "" for an input that is left out.
            outputs: names. Default: a new one.
        """
        outputs = list(outputs) or [self.name(kind)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def constant(self, value, dtype=np.float32) -> str:
        """Add an array, and return its name."""
        name = self.name("constant")
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integer(self, value) -> str:
        """Add an int64 array, and return its name."""
        return self.constant(value, np.int64)

    def cast(self, name: str, kind: int) -> str:
        """Return the values as another type of `TensorProto`."""
        return self.add("Cast", [name], to=kind)

    def squeeze(self, name: str, axis: int) -> str:
        """Return the values without an axis of size 1."""
        return self.add("Squeeze", [name, self.integer([axis])])

    def model(self, inputs, outputs) -> onnx.ModelProto:
        """Return the checked model.

        Args:
            inputs, outputs: the name, the type, and the shape of each.
        """
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
