"""Check that an ONNX network only computes on its inputs.

ONNX Runtime has operators that hand a graph to other libraries, and a tensor may name
any file. The allowlist holds the operators of this project's exports, past and present:
all cells, layers, directions and tasks. None of them takes a subgraph, so the only
loops are those of recurrent layers.
"""

from model.bundle.operators import protobuf_subset

DOMAINS = ("", "ai.onnx")  # synonyms
OPERATORS = frozenset(
    {
        # shapes
        *("Cast", "Concat", "Range", "Reshape", "Shape", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze", "Less", "Where", "Expand"),
        *("Gather", "GatherElements", "GatherND", "Slice"),
        # layers
        *("Add", "Clip", "CumSum", "Div", "MatMul", "Max", "Min", "Mul", "Sub"),
        "Softmax",
        *("GRU", "LSTM"),
    }
)
QUANTIZED = frozenset({("com.microsoft", "DynamicQuantizeLSTM")})
MAX_STRUCTURE = 2**18  # bytes besides the weights; the project's own have some 10 KB
RUNTIME_FORMAT = (
    slice(4, 8),
    b"ORTM",
)  # ONNX Runtime's own format, which isn't checked here


def check(data: bytes) -> None:
    """Refuse an ONNX model that could do more than a network.

    Raises:
        ValueError: names the forbidden operator or feature.
    """
    position, magic = RUNTIME_FORMAT
    if data[position] == magic:
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
        if not known and (node.domain, node.op_type) not in QUANTIZED:
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
