"""TensorFlow networks that could do more than compute are refused."""

import shutil
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from model.bundle import bundle
from model.bundle.operators import tensorflow_ops
from service.settings import Settings
from service.worker import engine
from tests.support.bundles import refusal, seal
from tests.support.servers import ROOT, running, wait

FRAMES = tf.TensorSpec((None, None, 3), tf.float32, "frames")
LENGTHS = tf.TensorSpec((None,), tf.int32, "lengths")
STATE = tf.TensorSpec((None, 20), tf.float32, "state")


def wrap(folder, act, *, also=None):
    """Replace the network by one that also runs `act` whenever it computes."""
    loaded = tf.saved_model.load(str(folder))
    inner = loaded.signatures["step"]

    def step(frames, lengths, state):
        with tf.control_dependencies([act()]):
            return dict(inner(frames=frames, lengths=lengths, state=state))

    def serve(frames, lengths):
        answers = step(frames, lengths, tf.zeros((tf.shape(frames)[0], 20)))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_writes(walks, tmp_path, name):
    """A network with correct answers that also writes a file is refused by its
    operator. TensorFlow itself would serve it."""
    path = tmp_path / "taken"
    wrapped = wrap(walks, partial(WRITERS[name], path))
    loaded = engine.load(wrapped, Settings(engine="tensorflow")).engine
    assert wrapped.golden().difference(loaded.step) < bundle.TOLERANCE
    assert list(tmp_path.glob("taken*"))
    text = refusal(wrapped)
    assert text.startswith(f"{walks / 'saved_model.pb'}: operator {name} is not")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_operator(walks, name):
    """A network that reads files, runs Python or holds a graph as text is refused."""
    wrapped = wrap(walks, OTHERS[name])
    assert "step" in tf.saved_model.load(str(walks)).signatures
    assert f"{walks / 'saved_model.pb'}: operator " in refusal(wrapped)
    saved = saved_model_pb2.SavedModel.FromString(
        (walks / "saved_model.pb").read_bytes()
    )
    library = saved.meta_graphs[0].graph_def.library.function
    kinds = {node.op for function in library for node in function.node_def}
    assert name in kinds
    assert name not in tensorflow_ops.COMPUTING


def test_service(walks, tmp_path):
    """The service refuses the network before TensorFlow loads it: no file is written."""
    path = tmp_path / "taken"
    wrap(walks, partial(write_file, path))
    root = walks.parents[1]
    settings = Settings(port=0, bundles=root, engine="tensorflow", workers=1)
    with running(settings, ready=False) as service:
        wait(lambda: service.registry.complete, "the bundle is refused")
        reason = service.registry.broken["walks"]
        assert "operator WriteFile is not allowed" in reason
    assert not path.exists()


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
def test_objects(walks, tmp_path, make, reason):
    """Objects that `tf.saved_model.load` would set up or call are refused: tables that
    read a file, assets, resources, functions beside the signatures."""
    wrap(walks, tf.no_op, also=make(tmp_path))
    assert reason in refusal(seal(walks))
