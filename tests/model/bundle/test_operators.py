"""The allowlist: a network that could do more than compute is refused unread."""

import itertools
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper
from tensorflow.core.protobuf import saved_model_pb2

from model.bundle import (
    allowlist,
    bundle,
    golden,
    onnx_ops,
    protobuf_subset,
    tensorflow_ops,
)
from model.bundle.bundle import BundleError
from model.export import export, onnx_graph
from service.settings import Settings
from service.worker import engine
from tests.support.bundles import cached, copy_bundle, write_bundle
from tests.support.networks import CELLS, make_network
from tests.support.servers import ROOT, running, wait

FRAMES = tf.TensorSpec((None, None, 3), tf.float32, "frames")
LENGTHS = tf.TensorSpec((None,), tf.int32, "lengths")
STATE = tf.TensorSpec((None, 6), tf.float32, "state")


@pytest.fixture
def copy(bundles, tmp_path):
    """A copy of the bundle `walks`, to be changed."""
    folder = tmp_path / "copy" / "walks" / "1"
    shutil.copytree(bundles / "walks" / "1", folder)
    return folder


def seal(folder):
    """Seal a changed bundle with correct digests, as an attacker would."""
    metadata = bundle.Metadata.model_validate_json((folder / bundle.MARKER).read_text())
    bundle.seal(folder, metadata)
    return bundle.read(folder)


def refusal(target):
    with pytest.raises(BundleError) as caught:
        allowlist.check(target)
    return str(caught.value)


# --- TensorFlow ------------------------------------------------------------------


def wrap(folder, act, *, also=None):
    """Replace the network by one that also runs `act` whenever it computes."""
    loaded = tf.saved_model.load(str(folder))
    inner = loaded.signatures["step"]

    def step(frames, lengths, state):
        with tf.control_dependencies([act()]):
            return dict(inner(frames=frames, lengths=lengths, state=state))

    def serve(frames, lengths):
        answers = step(frames, lengths, tf.zeros((tf.shape(frames)[0], 6)))
        return {"probabilities": answers["probabilities"]}

    module = tf.Module()
    module.weights, module.also = list(loaded.weights), also
    signatures = {
        "serving_default": tf.function(serve, [FRAMES, LENGTHS], autograph=False),
        "step": tf.function(step, [FRAMES, LENGTHS, STATE], autograph=False),
    }
    written = folder.parent / "written"
    tf.saved_model.save(module, str(written), signatures)
    for name in ("saved_model.pb", "fingerprint.pb"):
        shutil.copy(written / name, folder / name)
    shutil.rmtree(folder / "variables")
    shutil.copytree(written / "variables", folder / "variables")
    return seal(folder)


def write_file(path):
    return tf.raw_ops.WriteFile(filename=str(path), contents="taken")


def save(path):
    return tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=["a"], shape_and_slices=[""], tensors=[[1.0]]
    )


def print_to(path):
    return tf.raw_ops.PrintV2(input="taken", output_stream=f"file://{path}")


# Operators that write a file whenever the network computes.
WRITERS = {"WriteFile": write_file, "SaveV2": save, "PrintV2": print_to}


def read_file():
    return tf.io.read_file(str(ROOT / "README.md"))


def restore():
    prefix = str(ROOT / "bundles/vowels/1/variables/variables")
    return tf.raw_ops.RestoreV2(
        prefix=prefix,
        tensor_names=["_CHECKPOINTABLE_OBJECT_GRAPH"],
        shape_and_slices=[""],
        dtypes=[tf.string],
    )[0]


def nested():
    """A data set whose graph, with all its operators, is text."""
    text = tf.data.Dataset.from_tensors(1)._variant_tensor
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=text)
    return tf.raw_ops.DatasetFromGraph(graph_def=graph)


OTHERS = {
    "ReadFile": read_file,
    "RestoreV2": restore,
    "EagerPyFunc": lambda: tf.py_function(lambda: 1.0, [], tf.float32),
    "PyFunc": lambda: tf.numpy_function(lambda: np.float32(1), [], tf.float32),
    "DatasetFromGraph": nested,
}


class TestSignature:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", WRITERS)
    def test_writes(self, copy, tmp_path, name):
        """A network with correct answers that also writes a file is refused by its
        operator. TensorFlow itself would serve it."""
        path = tmp_path / "taken"
        wrapped = wrap(copy, partial(WRITERS[name], path))
        loaded = engine.load(wrapped, Settings(engine="tensorflow")).engine
        assert wrapped.golden().difference(loaded.step) < bundle.TOLERANCE
        assert list(tmp_path.glob("taken*"))
        text = refusal(wrapped)
        assert text.startswith(f"{copy / 'saved_model.pb'}: operator {name} is not")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", OTHERS)
    def test_operator(self, copy, name):
        """A network that reads files, runs Python or holds a graph as text is refused."""
        wrapped = wrap(copy, OTHERS[name])
        assert "step" in tf.saved_model.load(str(copy)).signatures
        assert f"{copy / 'saved_model.pb'}: operator " in refusal(wrapped)
        kinds = {node.op for function in functions(copy) for node in function.node_def}
        assert name in kinds
        assert name not in tensorflow_ops.COMPUTING

    def test_service(self, copy, tmp_path):
        """The service refuses the network before TensorFlow loads it: no file is written."""
        path = tmp_path / "taken"
        wrap(copy, partial(write_file, path))
        root = copy.parents[1]
        settings = Settings(port=0, bundles=root, engine="tensorflow", workers=1)
        with running(settings, ready=False) as service:
            wait(lambda: service.registry.complete, "the bundle is refused")
            reason = service.registry.broken["walks"]
            assert "operator WriteFile is not allowed" in reason
        assert not path.exists()


def functions(folder):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def.library.function


def table(folder):
    """A table that reads a file when it is created and whenever it is loaded."""
    (folder / "words").write_text("one\ntwo\n")
    lines = tf.lookup.TextFileInitializer(
        str(folder / "words"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return tf.lookup.StaticHashTable(lines, -1)


def asset(folder):
    (folder / "words").write_text("one\ntwo\n")
    return tf.saved_model.Asset(str(folder / "words"))


def resource(folder):
    return tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)


def function(folder):
    return tf.function(lambda: 1.0, input_signature=[])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (table, "assets"),
        (asset, "assets"),
        (resource, "kind resource"),
        (function, "kind function"),
    ],
)
def test_objects(copy, tmp_path, make, reason):
    """Objects that `tf.saved_model.load` would set up or call are refused: tables that
    read a file, assets, resources, functions beside the signatures."""
    wrap(copy, tf.no_op, also=make(tmp_path))
    assert reason in refusal(seal(copy))


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
def test_edited(copy, edit):
    """A graph changed by hand is refused wherever it hides something: in functions that
    nothing calls, behind the saver, in attributes that select functions. TensorFlow
    would serve some of these, with correct answers."""
    edited = Edited(copy)
    edit(edited)
    edited.path.write_bytes(edited.saved.SerializeToString())
    sealed = seal(copy)
    if edit in SERVED:
        engine.load(sealed, Settings(engine="tensorflow"))
    text = refusal(sealed)
    assert text.startswith(f"{edited.path}: ")
    assert EDITS[edit] in text


def test_pieces(copy):
    """A graph in two pieces is merged, as TensorFlow does it."""
    path = copy / "saved_model.pb"
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
    assert "operator WriteFile is not allowed" in refusal(seal(copy))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "saved_model.pbtxt",
            "saved_model.cpb",
            "assets/words.txt",
            "keras_metadata.pb",
        ),
        *("debug/saved_model_debug_info.pb", "assets.extra/tf_serving_warmup_requests"),
        *("variables/variables.other", "assets.extra/other.onnx", "assets.extra/a.so"),
    ],
)
def test_files(copy, name):
    """A file that bundles don't have is refused, even with a digest: TensorFlow and
    TensorFlow Serving look for some of them."""
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"")
    assert refusal(seal(copy)) == f"{copy / name}: a bundle has no such file"


# --- ONNX ------------------------------------------------------------------------


def model_of(folder):
    return onnx.load(str(folder / bundle.NETWORK))


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


class TestBombs:
    """A small file that would take much memory is refused before it is parsed."""

    def test_onnx(self, copy):
        """All but the weights must be small: empty attributes, tensors without numbers,
        and names are limited."""
        network = onnx.load(copy / bundle.NETWORK)
        empty = {
            "attributes": lambda m: m.graph.node[0].attribute.extend(
                [onnx.AttributeProto()] * 200_000
            ),
            "tensors": lambda m: m.graph.initializer.extend(
                [onnx.TensorProto()] * 200_000
            ),
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

    @pytest.mark.parametrize("data", [b"\x3a\x7f", b"\x3a", b"\x33", b"\xff" * 20])
    def test_cut_off(self, data):
        """Bytes that are not a message are refused."""
        with pytest.raises(ValueError, match="can't be read"):
            onnx_ops.check(data)

    def test_tensorflow(self, copy):
        """A SavedModel's graph, which has no weights, must be small too."""
        (copy / "saved_model.pb").write_bytes(b"\x12\x00" * (2 * 2**20 + 1))
        assert "is longer than" in refusal(seal(copy))


class TestOnnx:
    @pytest.mark.parametrize("spoil", SPOILERS)
    def test_refused(self, copy, spoil):
        """An ONNX network with another operator, a subgraph, a function, or weights in
        another file is refused; the message names it."""
        model = model_of(copy)
        reason = spoil(model)
        (copy / bundle.NETWORK).write_bytes(model.SerializeToString())
        sealed = seal(copy)
        if spoil in LOADED:  # ONNX Runtime itself would load these
            onnxruntime.InferenceSession(str(copy / bundle.NETWORK))
        text = refusal(sealed)
        assert text.startswith(f"{copy / bundle.NETWORK}: ")
        assert reason in text

    def test_pieces(self, copy):
        """A network in two pieces is merged."""
        more = onnx.ModelProto()
        more.graph.node.add(op_type="RandomNormalLike", input=["frames"], output=["x"])
        path = copy / bundle.NETWORK
        path.write_bytes(path.read_bytes() + more.SerializeToString())
        onnxruntime.InferenceSession(str(path))
        assert "operator RandomNormalLike" in refusal(seal(copy))

    def test_runtime_format(self, copy):
        """A file that ONNX Runtime would read as its own format is refused, even if it
        is also a valid ONNX network."""
        path = copy / bundle.NETWORK
        # An unknown field of 4 bytes before all others.
        path.write_bytes(b"\xa2\x80\x06\x06ORTM\0\0" + path.read_bytes())
        assert onnx.load(str(path)).graph.node
        assert "ONNX Runtime's format" in refusal(seal(copy))

    @pytest.mark.parametrize("data", [b"", b"no network", b"\x00" * 20])
    def test_none(self, copy, data):
        """A file that is not an ONNX network is refused by its name."""
        (copy / bundle.NETWORK).write_bytes(data)
        assert refusal(seal(copy)).startswith(f"{copy / bundle.NETWORK}: ")

    def test_int8(self, quantized):
        """A network with int8 weights passes."""
        small = bundle.read(quantized / "small" / "1")
        assert bundle.INT8.as_posix() in small.metadata.files
        allowlist.check(small)


# --- what is allowed -------------------------------------------------------------

EXPORTS = [
    (task, 1 + number % 2, both, cell)
    for number, (task, both, cell) in enumerate(
        itertools.product(("classify", "label"), (False, True), CELLS)
    )
]


def write_exports(root):
    for task, layers, both, cell in EXPORTS:
        network = make_network(
            task, layers=layers, bidirectional=both, **CELLS[cell]
        ).for_export()
        folder = root / f"{task}-{layers}-{both}-{cell}"
        export.save(network, folder)
        onnx.save(onnx_graph.build(network), str(folder / "network.onnx"))


@pytest.fixture(scope="module")
def exports():
    """Both formats of every kind of network, as bytes."""
    return [
        ((f / "saved_model.pb").read_bytes(), (f / "network.onnx").read_bytes())
        for f in sorted(cached("operators", write_exports, Path(__file__)).iterdir())
    ]


def test_exports(exports):
    """All exports pass, in both formats."""
    assert len(exports) == len(EXPORTS)
    for saved, network in exports:
        tensorflow_ops.check(saved)
        onnx_ops.check(network)


def test_shipped():
    """The shipped bundles pass."""
    for name in ("digits", "letters", "letters-live", "vowels"):
        allowlist.check(bundle.read(ROOT / "bundles" / name / "1"))


def test_nothing_more(exports):
    """Every allowed operator occurs in an export or in a shipped bundle."""
    files = [p.parent for p in ROOT.glob("bundles/*/1/saved_model.pb")]
    pairs = [
        *exports,
        *(
            ((p / "saved_model.pb").read_bytes(), (p / bundle.NETWORK).read_bytes())
            for p in files
        ),
    ]
    outside, inside, ours = set(), set(), set()
    for saved, network in pairs:
        graph = saved_model_pb2.SavedModel.FromString(saved).meta_graphs[0].graph_def
        outside |= {node.op for node in graph.node}
        inside |= {node.op for f in graph.library.function for node in f.node_def}
        ours |= {
            node.op_type for node in onnx.ModelProto.FromString(network).graph.node
        }
    allowed = tensorflow_ops
    assert outside == allowed.OUTSIDE
    assert inside == allowed.COMPUTING | allowed.SAVING | allowed.RESTORING
    assert ours == onnx_ops.OPERATORS


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(
            protobuf_subset._SAVED_MODEL, saved_model_pb2.SavedModel, id="tensorflow"
        ),
        pytest.param(protobuf_subset._ONNX_MODEL, onnx.ModelProto, id="onnx"),
    ],
)
def test_schema(ours, theirs):
    """The fields have the numbers, types and oneofs of the real messages, so that both
    parsers read the same."""
    pending, seen = [(ours.DESCRIPTOR, theirs.DESCRIPTOR)], set()
    while pending:
        mine, real = pending.pop()
        for field in mine.fields:
            other = real.fields_by_number[field.number]
            assert field.is_repeated == other.is_repeated, (mine.name, field.name)
            kind = field.TYPE_INT32 if other.type == field.TYPE_ENUM else other.type
            assert field.type == kind, (mine.name, field.name)
            if field.containing_oneof or other.containing_oneof:
                numbers = [
                    {member.number for member in side.containing_oneof.fields}
                    for side in (field, other)
                ]
                assert numbers[0] == numbers[1], field.name
            pair = (field.message_type, other.message_type)
            if field.message_type and field.message_type.fields and pair not in seen:
                seen.add(pair)
                pending.append(pair)


# --- bytes -----------------------------------------------------------------------


class TestContents:
    def test_changed(self, copy):
        """A file changed after verification reaches no engine."""
        verified = bundle.read(copy)
        for kind, name in (("onnx", bundle.NETWORK), ("tensorflow", "saved_model.pb")):
            whole = (copy / name).read_bytes()
            (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            with pytest.raises(BundleError, match="SHA-256 differs"):
                engine.load(verified, Settings(engine=kind))
            (copy / name).write_bytes(whole)
            engine.load(verified, Settings(engine=kind))

    def test_gone(self, copy):
        """A file removed after verification is named."""
        verified = bundle.read(copy)
        (copy / bundle.NETWORK).unlink()
        with pytest.raises(BundleError, match=str(bundle.NETWORK)):
            verified.content(bundle.NETWORK.as_posix())

    def test_unlisted(self, copy):
        """Only files listed in `bundle.json` can be read."""
        verified = bundle.read(copy)
        with pytest.raises(BundleError):
            verified.content(bundle.MARKER.as_posix())

    def test_private(self, bundles):
        """TensorFlow reads a private copy, which is removed afterwards."""
        verified = bundle.read(bundles / "walks" / "1")
        with verified.saved_model() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
            assert Path("saved_model.pb") in files
            assert not [path for path in files if path.is_relative_to(bundle.EXTRA)]
        assert not folder.exists()


class TestGolden:
    def test_pickle(self, copy):
        """A pickled object in the golden answers is refused."""
        arrays = dict(np.load(copy / bundle.GOLDEN))
        arrays["state"] = np.array([print], object)
        np.savez(copy / bundle.GOLDEN, **arrays)
        with pytest.raises(ValueError, match="allow_pickle"):
            seal(copy).golden()

    def test_bomb(self, copy, monkeypatch):
        """Golden answers that unpack to too many bytes are refused."""
        monkeypatch.setattr(golden, "MAX_BYTES", 10_000)
        arrays = dict(np.load(copy / bundle.GOLDEN))
        arrays["state"] = np.zeros(100_000, np.float32)
        np.savez_compressed(copy / bundle.GOLDEN, **arrays)
        with pytest.raises(ValueError, match="more than 10000 bytes"):
            seal(copy).golden()

    def test_others(self, copy):
        """Golden answers with other arrays are refused."""
        arrays = dict(np.load(copy / bundle.GOLDEN))
        np.savez(copy / bundle.GOLDEN, **arrays, more=np.zeros(1))
        with pytest.raises(ValueError, match="other arrays"):
            seal(copy).golden()


def test_too_long(copy, monkeypatch):
    """A file over the size limit is refused before it is read."""
    monkeypatch.setattr(allowlist, "MAX_BYTES", dict.fromkeys(allowlist.CHECKS, 1000))
    monkeypatch.setattr(bundle.Bundle, "content", lambda *_: pytest.fail("it was read"))
    assert "longer than 1000 bytes" in refusal(bundle.read(copy))


@pytest.mark.slow
def test_export_is_checked(tmp_path, monkeypatch):
    """An export that the service would refuse is not published."""
    monkeypatch.setattr(onnx_ops, "OPERATORS", frozenset({"Add"}))
    with pytest.raises(BundleError, match="is not allowed"):
        write_bundle(tmp_path, "new", "classify", ("a", "b"), cell="gru", hidden=2)
    assert list((tmp_path / "new").iterdir()) == []


def test_copy_is_a_bundle(bundles, tmp_path):
    """The unchanged copy passes."""
    allowlist.check(bundle.read(copy_bundle(bundles / "walks" / "1", tmp_path / "w")))
