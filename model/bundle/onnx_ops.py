"""What a bundle's ONNX network may do: compute on what it is given, nothing else.

ONNX Runtime brings operators that hand a graph to other libraries, and a tensor may lie
in any file that it names. Here are those that the project's exports hold, over all
cells, layers, directions and tasks, and those of older exports. None takes a graph of
its own, so there are no loops but a recurrent layer's.
"""

from model.bundle import protobuf_subset

DOMAINS = ("", "ai.onnx")  # the same
OPERATORS = frozenset(
    {
        # shapes
        *("Cast", "Concat", "Range", "Reshape", "Shape", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze", "Less", "Where"),
        # layers
        *("Add", "Div", "MatMul", "Mul", "Sub", "Softmax", "GRU", "LSTM"),
    }
)
QUANTISED = frozenset({("com.microsoft", "DynamicQuantizeLSTM")})
MAX_STRUCTURE = 2**18  # bytes besides the weights; ours have some 10 KB
RUNTIME_FORMAT = slice(4, 8), b"ORTM"  # ONNX Runtime's own, which no parser here reads


def check(data: bytes) -> None:
    """Refuse an ONNX model that could do more than a network.

    Raises:
        ValueError: says what it holds that it may not; an operator by its name.
    """
    place, mark = RUNTIME_FORMAT
    if data[place] == mark:
        raise ValueError("is in ONNX Runtime's format, not in ONNX's")
    protobuf_subset.check_structure(data, MAX_STRUCTURE)
    model = protobuf_subset.onnx(data)
    if not model.graph.node:
        raise ValueError("holds no network")
    if model.training or model.functions or model.graph.sparse_initializer:
        raise ValueError("holds more than a graph: functions, training, sparse weights")
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        known = node.domain in DOMAINS and node.op_type in OPERATORS
        if not known and (node.domain, node.op_type) not in QUANTISED:
            name = f"{node.domain}.{node.op_type}".removeprefix(".")
            raise ValueError(f"operator {name} is not allowed")
        for value in node.attributes:
            if value.HasField("graph") or value.graphs:
                raise ValueError(f"operator {node.op_type} with a graph of its own")
            if value.HasField("sparse") or value.sparses:
                raise ValueError(f"operator {node.op_type} with sparse weights")
            tensors += [value.tensor, *value.tensors]
    for tensor in tensors:
        if tensor.external or tensor.location:
            raise ValueError(f"tensor {tensor.name} lies in a file of its own")
