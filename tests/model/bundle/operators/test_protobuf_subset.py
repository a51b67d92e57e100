"""The fields that are read of TensorFlow's and ONNX's files are the real ones."""

import onnx
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from model.bundle.operators import onnx_ops, protobuf_subset


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


@pytest.mark.parametrize("data", [b"\x3a\x7f", b"\x3a", b"\x33", b"\xff" * 20])
def test_cut_off(data):
    """Bytes that are not a message are refused."""
    with pytest.raises(ValueError, match="can't be read"):
        onnx_ops.check(data)
