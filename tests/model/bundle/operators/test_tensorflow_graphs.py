"""TensorFlow graphs changed by hand are refused wherever they hide something."""

from functools import partial

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from service.settings import Settings
from service.worker import engine
from tests.support.bundles import refusal, seal


class Edited:
    """The SavedModel of a bundle as a message, to be changed."""

    def __init__(self, folder):
        self.path = folder / "saved_model.pb"
        self.saved = saved_model_pb2.SavedModel()
        self.saved.ParseFromString(self.path.read_bytes())
        self.graph = self.saved.meta_graphs[0]
        self.nodes = {node.name: node for node in self.graph.graph_def.node}
        library = self.graph.graph_def.library.function
        self.functions = {f.signature.name: f for f in library}

    def named(self, part):
        return next(f for name, f in self.functions.items() if part in name)

    def saver(self, kind):
        name = getattr(self.graph.saver_def, kind).partition(":")[0]
        return self.nodes[name]


def library_only(edited):
    function = edited.graph.graph_def.library.function.add()
    function.signature.name = "idle"
    node = function.node_def.add(name="a", op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("taken"))
    node.attr["dtype"].type = tf.string.as_datatype_enum
    function.node_def.add(name="w", op="WriteFile", input=["a:output:0"] * 2)


def another_graph(edited):
    edited.saved.meta_graphs.add().CopyFrom(edited.graph)


def no_objects(edited):
    edited.graph.ClearField("object_graph_def")


def signature_to_saver(edited):
    outputs = edited.graph.signature_def["serving_default"].outputs
    outputs["probabilities"].name = edited.graph.saver_def.save_tensor_name


def signature_behind_saver(edited):
    node = edited.graph.graph_def.node.add(name="behind", op="NoOp")
    node.input.append(f"^{edited.saver('save_tensor_name').name}")
    edited.graph.collection_def["saved_model_main_op"].node_list.value[:] = ["behind"]


def begins_with_saver(edited):
    name = edited.saver("restore_op_name").name
    edited.graph.collection_def["saved_model_main_op"].node_list.value[:] = [name]


def legacy_begin(edited):
    edited.graph.collection_def["legacy_init_op"].node_list.value[:] = ["NoOp"]


def another_call(edited):
    node = edited.graph.graph_def.node.add()
    node.CopyFrom(edited.saver("save_tensor_name"))
    node.name = "again"


def object_names_saver(edited):
    name = edited.named("_traced_save").signature.name
    edited.graph.object_graph_def.concrete_functions[name].SetInParent()


def bare_names_saver(edited):
    name = edited.named("_traced_save").signature.name
    node = edited.graph.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = name


def weight_of_programs(edited):
    for node in edited.graph.object_graph_def.nodes:
        if node.HasField("variable"):
            node.variable.dtype = tf.variant.as_datatype_enum


def saveable(edited):
    edited.graph.object_graph_def.nodes[1].saveable_objects["x"].save_function = 1


def call(edited, *, inner=False, listed=False):
    """The network calls the function that saves."""
    name = edited.named("_traced_save").signature.name
    whole = next(
        f for n, f in edited.functions.items() if "_serve_" in n and "wrapper" not in n
    )
    node = whole.node_def.add(name="call", op="StatefulPartitionedCall")
    if inner:
        node.attr["f"].func.name = edited.named("while_cond").signature.name
        node.attr["f"].func.attr["x"].func.name = name
    elif listed:
        node.attr["f"].list.func.add(name=name)
    else:
        node.attr["f"].func.name = name


def call_by_name(edited):
    whole = edited.named("_serve_")
    whole.node_def.add(name="x", op=edited.named("_traced_save").signature.name)


def left_to_caller(edited):
    node = edited.named("_serve_").node_def.add(name="x", op="StatefulPartitionedCall")
    node.attr["f"].placeholder = "g"


def implements(edited):
    for part in ("_traced_save", "_serve_"):
        edited.named(part).attr["api_implements"].s = b"same"


def node_attribute(edited):
    edited.named("_serve_").node_def[0].attr["_XlaCompile"].b = True


def restorer_writes(edited):
    edited.named("_traced_restore").node_def.add(name="x", op="SaveV2")


def restores_another_file(edited):
    for node in edited.named("_traced_restore").node_def:
        if node.op == "RestoreV2":
            node.input[0] = "RestoreV2/tensor_names:output:0"


def given_another_file(edited):
    edited.saver("restore_op_name").input[0] = "Const"


def network_changes_itself(edited):
    edited.named("_serve_").node_def.add(name="x", op="AssignVariableOp")


def one_saver(edited):
    saver = edited.graph.saver_def
    saver.restore_op_name = saver.save_tensor_name.partition(":")[0]


def no_saver(edited):
    edited.graph.ClearField("saver_def")


def saves_and_restores(edited):
    """One function for both: it could write a file while it restores."""
    name = edited.named("_traced_save").signature.name
    edited.saver("restore_op_name").attr["f"].func.name = name
    edited.graph.graph_def.library.function.remove(edited.named("_traced_restore"))


def twice(edited):
    library = edited.graph.graph_def.library.function
    library.add().CopyFrom(edited.named("_serve_"))


def named_as_operator(edited):
    function = edited.graph.graph_def.library.function.add()
    function.signature.name = "Tanh"


def gradient(edited):
    library = edited.graph.graph_def.library
    library.gradient.add(function_name="a", gradient_func="b")


def variant(edited):
    tensor = edited.named("_serve_").node_def.add(name="x", op="Const").attr["value"]
    tensor.tensor.variant_val.add(type_name="WrappedDatasetVariant")


def handle(edited):
    tensor = edited.named("_serve_").node_def.add(name="x", op="Const").attr["value"]
    tensor.tensor.resource_handle_val.add(name="another model's weights")


def variable_inside(edited):
    edited.named("_serve_").node_def.add(name="x", op="VarHandleOp")


def composite(edited):
    outputs = edited.graph.signature_def["serving_default"].outputs
    info = outputs["probabilities"].composite_tensor
    info.components.add(name=edited.graph.saver_def.save_tensor_name)


EDITS = {
    library_only: "operator WriteFile is not allowed in function idle",
    another_graph: "2 graphs",
    no_objects: "TensorFlow 1",
    signature_to_saver: "leads to its saver",
    signature_behind_saver: "takes what its saver puts out",
    begins_with_saver: "leads to its saver",
    legacy_begin: "legacy_init_op",
    another_call: "is not allowed in function",
    object_names_saver: "is not allowed in function",
    bare_names_saver: "is not allowed in function",
    weight_of_programs: "holds no numbers",
    saveable: "a way of its own to be saved",
    call: "is not allowed in function",
    partial(call, inner=True): "is not allowed in function",
    partial(call, listed=True): "is not allowed in function",
    call_by_name: "traced_save",
    left_to_caller: "left to the caller",
    implements: "attribute api_implements",
    node_attribute: "attribute _XlaCompile",
    restorer_writes: "operator SaveV2 is not allowed",
    restores_another_file: "file of its choice",
    given_another_file: "file of its choice",
    network_changes_itself: "operator AssignVariableOp is not allowed",
    one_saver: "no saver",
    no_saver: "no saver",
    saves_and_restores: "saves and restores",
    twice: "two meanings",
    named_as_operator: "two meanings for Tanh",
    gradient: "gradients",
    variant: "more than numbers and text",
    handle: "more than numbers and text",
    variable_inside: "operator VarHandleOp is not allowed",
    composite: "takes more than tensors",
}
SERVED = (library_only, signature_to_saver, bare_names_saver, implements, legacy_begin)


@pytest.mark.parametrize(
    "edit", EDITS, ids=lambda e: getattr(e, "__name__", "") or f"call{e.keywords}"
)
def test_edited(walks, edit):
    """A graph changed by hand is refused wherever it hides something: in functions that
    nothing calls, behind the saver, in attributes that select functions. TensorFlow
    would serve some of these, with correct answers."""
    edited = Edited(walks)
    edit(edited)
    edited.path.write_bytes(edited.saved.SerializeToString())
    sealed = seal(walks)
    if edit in SERVED:
        engine.load(sealed, Settings(engine="tensorflow"))
    text = refusal(sealed)
    assert text.startswith(f"{edited.path}: ")
    assert EDITS[edit] in text


def test_pieces(walks):
    """A graph in two pieces is merged, as TensorFlow does it."""
    path = walks / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    more = saved_model_pb2.SavedModel().meta_graphs.add()
    function = more.graph_def.library.function.add()
    function.signature.name = "idle"
    function.node_def.add(name="w", op="WriteFile")
    whole = saved.meta_graphs[0].SerializeToString() + more.SerializeToString()
    size = len(whole)
    length = []
    while size:
        length.append(size & 127 | (128 if size > 127 else 0))
        size >>= 7
    path.write_bytes(b"\x08\x01\x12" + bytes(length) + whole)
    seen = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    assert len(seen.meta_graphs) == 1
    assert "operator WriteFile is not allowed" in refusal(seal(walks))


def test_graph_is_small(walks):
    """A SavedModel's graph, which has no weights, must be small too."""
    (walks / "saved_model.pb").write_bytes(b"\x12\x00" * (2 * 2**20 + 1))
    assert "is longer than" in refusal(seal(walks))
