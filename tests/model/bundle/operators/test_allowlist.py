"""The allowlist holds what exports need: files and operators, no more."""

from pathlib import Path

import onnx
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from model.bundle import bundle
from model.bundle.bundle import BundleError
from model.bundle.operators import allowlist, onnx_ops, tensorflow_ops
from model.export import export, onnx_graph
from tests.support import exports
from tests.support.bundles import cached, refusal, seal, write_bundle
from tests.support.networks import CELLS, make_network
from tests.support.servers import ROOT


def test_files(copy):
    """A file that bundles don't have is refused, even with a digest: TensorFlow and
    TensorFlow Serving look for some of them."""
    for name in (
        *("saved_model.pbtxt", "saved_model.cpb", "assets/words.txt"),
        *("keras_metadata.pb", "debug/saved_model_debug_info.pb"),
        *("assets.extra/tf_serving_warmup_requests", "variables/variables.other"),
        *("assets.extra/other.onnx", "assets.extra/a.so"),
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"")
        assert refusal(seal(copy)) == f"{copy / name}: a bundle has no such file"
        (copy / name).unlink()


SHIPPED = ("digits", "letters", "letters-live", "vowels")
# Beside the published and the shipped ones, which have every cell in every direction,
# and every task in every direction, too.
EXPORTS = {
    "label-gru": ("label", {"cell": "gru"}),
    "label-gru-original-both-ways": (
        "label",
        {**CELLS["gru-original"], "bidirectional": True},
    ),
    "classify-lstm-both-ways": (
        "classify",
        {"cell": "lstm", "bidirectional": True, "read": "mean", "stack": 2},
    ),
}


def write_exports(root):
    for name, (task, settings) in EXPORTS.items():
        network = make_network(task, layers=1, **settings).for_export()
        (root / name / "1" / bundle.EXTRA).mkdir(parents=True)
        export.save(network, root / name / "1")
        onnx.save(onnx_graph.build(network), root / name / "1" / bundle.NETWORK)


@pytest.fixture(scope="module")
def exported():
    """Both formats of every kind of network, as bytes."""
    roots = (
        cached("operators", write_exports, Path(__file__)),
        exports.folder(),
        ROOT / "bundles",
    )
    folders = [path for root in roots for path in root.glob("*/1")]
    assert len(folders) >= len(EXPORTS) + len(exports.KINDS) + len(SHIPPED)
    return [
        ((path / "saved_model.pb").read_bytes(), (path / bundle.NETWORK).read_bytes())
        for path in folders
    ]


def test_exports(exported):
    """All exports pass, in both formats."""
    for saved, network in exported:
        tensorflow_ops.check(saved)
        onnx_ops.check(network)


def test_bundles(quantized):
    """The shipped bundles pass, and so does one with int8 weights."""
    for name in SHIPPED:
        allowlist.check(bundle.read(ROOT / "bundles" / name / "1"))
    small = bundle.read(quantized / "small" / "1")
    assert bundle.INT8.as_posix() in small.metadata.files
    allowlist.check(small)


def test_nothing_more(exported, quantized, text_bundles):
    """Every allowed operator occurs in an export or in a shipped bundle."""
    outside, inside, in_onnx = set(), set(), set()
    for saved, network in exported:
        graph = saved_model_pb2.SavedModel.FromString(saved).meta_graphs[0].graph_def
        outside |= {node.op for node in graph.node}
        inside |= {node.op for f in graph.library.function for node in f.node_def}
        model = onnx.ModelProto.FromString(network)
        in_onnx |= {node.op_type for node in model.graph.node}
    for folder in text_bundles.glob("*/1"):
        model = onnx.load(str(folder / bundle.NETWORK))
        in_onnx |= {node.op_type for node in model.graph.node}
    int8 = onnx.load(str(quantized / "small" / "1" / bundle.INT8))
    in_onnx |= {n.op_type for n in int8.graph.node if n.domain in onnx_ops.DOMAINS}
    allowed = tensorflow_ops
    assert outside == allowed.OUTSIDE
    assert inside == allowed.COMPUTING | allowed.SAVING | allowed.RESTORING
    assert in_onnx == onnx_ops.OPERATORS


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
