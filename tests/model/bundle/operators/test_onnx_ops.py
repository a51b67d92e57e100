"""ONNX networks that could do more than compute are refused."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model.bundle import bundle
from model.bundle.operators import onnx_ops
from tests.support.bundles import refusal, seal


def custom_domain(model):
    model.opset_import.add(domain="mine", version=1)
    model.graph.node.add(op_type="Add", domain="mine", input=["frames"], output=["x"])
    return "operator mine.Add is not allowed"


def other_operator(model):
    model.graph.node.add(op_type="RandomNormalLike", input=["frames"], output=["x"])
    return "operator RandomNormalLike is not allowed"


def runtime_operator(model):
    model.opset_import.add(domain="com.microsoft", version=1)
    node = model.graph.node.add(op_type="EPContext", domain="com.microsoft")
    node.output.append("x")
    return "operator com.microsoft.EPContext is not allowed"


def quantized_elsewhere(model):
    model.graph.node.add(op_type="DynamicQuantizeLSTM", output=["x"])
    return "operator DynamicQuantizeLSTM is not allowed"


def external(model):
    tensor = model.graph.initializer.add(name="taken", data_type=TensorProto.UINT8)
    tensor.dims.append(4)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="golden.npz")
    return "tensor taken lies in a file of its own"


def external_constant(model):
    tensor = TensorProto(name="taken", data_type=TensorProto.UINT8, dims=[4])
    tensor.external_data.add(key="location", value="golden.npz")
    node = model.graph.node.add(op_type="Identity", input=["frames"], output=["x"])
    node.op_type = "Cast"
    node.attribute.add(name="to", type=onnx.AttributeProto.TENSOR, t=tensor)
    return "tensor taken lies in a file of its own"


def branch(op_type):
    return helper.make_graph(
        [helper.make_node(op_type, [], ["y"], shape=[1])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )


def branches(model):
    model.graph.initializer.append(
        helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    )
    inner = branch("RandomNormal")
    node = helper.make_node("If", ["yes"], ["x"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    return "operator If is not allowed"


def graph_in_attribute(model):
    attribute = model.graph.node[0].attribute.add(name="body", g=branch("RandomNormal"))
    attribute.type = onnx.AttributeProto.GRAPH
    return "with a graph of its own"


def graphs_in_attribute(model):
    model.graph.node[0].attribute.add(name="b", graphs=[branch("RandomNormal")])
    return "with a graph of its own"


def local_function(model):
    function = helper.make_function(
        "mine",
        "Tanh",
        ["a"],
        ["b"],
        [helper.make_node("RandomNormalLike", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.add(domain="mine", version=1)
    model.graph.node.append(helper.make_node("Tanh", ["frames"], ["x"], domain="mine"))
    return "functions"


def training(model):
    model.training_info.add()
    return "training"


def sparse(model):
    model.graph.sparse_initializer.add()
    return "sparse"


LOADED = (branches, local_function, other_operator, external)
SPOILERS = [
    *(custom_domain, other_operator, runtime_operator, quantized_elsewhere, external),
    *(external_constant, branches, graph_in_attribute, graphs_in_attribute),
    *(local_function, training, sparse),
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_refused(copy, spoil):
    """An ONNX network with another operator, a subgraph, a function, or weights in
    another file is refused; the message names it."""
    model = onnx.load(copy / bundle.NETWORK)
    reason = spoil(model)
    (copy / bundle.NETWORK).write_bytes(model.SerializeToString())
    sealed = seal(copy)
    if spoil in LOADED:  # ONNX Runtime itself would load these
        onnxruntime.InferenceSession(str(copy / bundle.NETWORK))
    text = refusal(sealed)
    assert text.startswith(f"{copy / bundle.NETWORK}: ")
    assert reason in text


def test_pieces(copy):
    """A network in two pieces is merged."""
    more = onnx.ModelProto()
    more.graph.node.add(op_type="RandomNormalLike", input=["frames"], output=["x"])
    path = copy / bundle.NETWORK
    path.write_bytes(path.read_bytes() + more.SerializeToString())
    onnxruntime.InferenceSession(str(path))
    assert "operator RandomNormalLike" in refusal(seal(copy))


def test_runtime_format(copy):
    """A file that ONNX Runtime would read as its own format is refused, even if it
    is also a valid ONNX network."""
    path = copy / bundle.NETWORK
    # An unknown field of 4 bytes before all others.
    path.write_bytes(b"\xa2\x80\x06\x06ORTM\0\0" + path.read_bytes())
    assert onnx.load(str(path)).graph.node
    assert "ONNX Runtime's format" in refusal(seal(copy))


@pytest.mark.parametrize("data", [b"", b"no network", b"\x00" * 20])
def test_none(copy, data):
    """A file that is not an ONNX network is refused by its name."""
    (copy / bundle.NETWORK).write_bytes(data)
    assert refusal(seal(copy)).startswith(f"{copy / bundle.NETWORK}: ")


def test_structure_is_small(copy):
    """All but the weights must be small: empty attributes, tensors without numbers,
    and names are limited."""
    network = onnx.load(copy / bundle.NETWORK)
    empty = {
        "attributes": lambda m: m.graph.node[0].attribute.extend(
            [onnx.AttributeProto()] * 200_000
        ),
        "tensors": lambda m: m.graph.initializer.extend([onnx.TensorProto()] * 200_000),
        "numbers": lambda m: m.graph.initializer[0].dims.extend([1] * 500_000),
        "name": lambda m: setattr(m.graph, "doc_string", "a" * 2**19),
    }
    for spoil in empty.values():
        spoilt = onnx.ModelProto()
        spoilt.CopyFrom(network)
        spoil(spoilt)
        with pytest.raises(ValueError, match="bytes besides its weights"):
            onnx_ops.check(spoilt.SerializeToString())
    onnx_ops.check(network.SerializeToString())
