"""Parse the operators of TensorFlow's and ONNX's files with Protocol Buffers' own parser.

The service has neither library's schema. These few fields are enough to check what an
engine will read: with the same field numbers, the same merging of split messages, and
the same last value of a `oneof`. Two differences are on purpose. A map is a list of
entries here, so that a repeated key is seen twice. Fields that are missing here are
skipped: they hold numbers and names, no operators.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

Field = descriptor_pb2.FieldDescriptorProto

# By message and field: field number and type. A star marks a list; the word after the
# slash is the `oneof` that the field belongs to.
TENSORFLOW = {
    "SavedModel": {"meta_graphs": (2, "MetaGraph*")},
    "MetaGraph": {
        "graph": (2, "Graph"),
        "saver": (3, "Saver"),
        "collections": (4, "CollectionEntry*"),
        "signatures": (5, "SignatureEntry*"),
        "assets": (6, "Any*"),
        "objects": (7, "Objects"),
    },
    "Any": {},
    "Saver": {
        "filename": (1, "string"),
        "save": (2, "string"),
        "restore": (3, "string"),
    },
    "CollectionEntry": {"key": (1, "string"), "value": (2, "Collection")},
    "Collection": {
        "nodes": (1, "Names/kind"),
        "bytes": (2, "Any/kind"),
        "integers": (3, "Any/kind"),
        "floats": (4, "Any/kind"),
        "any": (5, "Any/kind"),
    },
    "Names": {"value": (1, "string*")},
    "SignatureEntry": {"key": (1, "string"), "value": (2, "Signature")},
    "Signature": {"inputs": (1, "TensorEntry*"), "outputs": (2, "TensorEntry*")},
    "TensorEntry": {"key": (1, "string"), "value": (2, "TensorInfo")},
    "TensorInfo": {
        "name": (1, "string/encoding"),
        "sparse": (4, "Any/encoding"),
        "composite": (5, "Any/encoding"),
    },
    "Graph": {"node": (1, "Node*"), "library": (2, "Library")},
    "Node": {
        "name": (1, "string"),
        "op": (2, "string"),
        "input": (3, "string*"),
        "attributes": (5, "AttributeEntry*"),
    },
    "Library": {
        "function": (1, "Function*"),
        "gradient": (2, "Any*"),
        "registered_gradients": (3, "Any*"),
    },
    "Function": {
        "signature": (1, "Operator"),
        "node": (3, "Node*"),
        "attributes": (5, "AttributeEntry*"),
    },
    "Operator": {"name": (1, "string"), "inputs": (2, "Argument*")},
    "Argument": {"name": (1, "string")},
    "AttributeEntry": {"key": (1, "string"), "value": (2, "Attribute")},
    "Attribute": {
        "list": (1, "Attributes/value"),
        "s": (2, "bytes/value"),
        "i": (3, "int64/value"),
        "f": (4, "float/value"),
        "b": (5, "bool/value"),
        "type": (6, "int32/value"),
        "shape": (7, "Any/value"),
        "tensor": (8, "Tensor/value"),
        "placeholder": (9, "string/value"),
        "function": (10, "Called/value"),
    },
    "Attributes": {"tensor": (8, "Tensor*"), "function": (9, "Called*")},
    "Called": {"name": (1, "string"), "attributes": (2, "AttributeEntry*")},
    "Tensor": {"handles": (14, "Any*"), "variants": (15, "Any*")},
    "Objects": {"nodes": (1, "Object*"), "functions": (2, "FunctionEntry*")},
    "FunctionEntry": {"key": (1, "string")},
    "Object": {
        "slots": (3, "Any*"),
        "user_object": (4, "UserObject/kind"),
        "asset": (5, "Any/kind"),
        "function": (6, "Any/kind"),
        "variable": (7, "Variable/kind"),
        "bare_concrete_function": (8, "BareFunction/kind"),
        "constant": (9, "Any/kind"),
        "resource": (10, "Any/kind"),
        "captured_tensor": (12, "Any/kind"),
        "saveables": (11, "Any*"),
        "registered_name": (13, "string"),
        "serialized": (14, "Any"),
        "registered_saver": (16, "string"),
    },
    "Variable": {"dtype": (1, "int32")},
    "UserObject": {"identifier": (1, "string")},
    "BareFunction": {"name": (1, "string")},
}
ONNX = {
    "Model": {
        "graph": (7, "Graph"),
        "training": (20, "Any*"),
        "functions": (25, "Any*"),
    },
    "Any": {},
    "Graph": {
        "node": (1, "Node*"),
        "initializer": (5, "Tensor*"),
        "sparse_initializer": (15, "Any*"),
    },
    "Node": {
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attributes": (5, "Attribute*"),
        "domain": (7, "string"),
    },
    "Attribute": {
        "name": (1, "string"),
        "tensor": (5, "Tensor"),
        "graph": (6, "Any"),
        "tensors": (10, "Tensor*"),
        "graphs": (11, "Any*"),
        "sparse": (22, "Any"),
        "sparses": (23, "Any*"),
    },
    "Tensor": {
        "name": (8, "string"),
        "external": (13, "Any*"),
        "location": (14, "int32"),
    },
}


WEIGHTS = (7, 5, 9)  # of ONNX: the model's graph, its initializers, their raw data


def _classes(package: str, messages: dict[str, dict[str, tuple[int, str]]]) -> Any:
    # TensorFlow's files are proto3. ONNX's are proto2, which reads these fields alike.
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        groups: list[str] = []
        for field, (number, text) in fields.items():
            kind, _, group = text.partition("/")
            kind, many, _ = kind.partition("*")
            added = message.field.add(name=field, number=number)
            added.label = Field.LABEL_REPEATED if many else Field.LABEL_OPTIONAL
            if kind in messages:
                added.type = Field.TYPE_MESSAGE
                added.type_name = f".{package}.{kind}"
            else:
                added.type = getattr(Field, f"TYPE_{kind.upper()}")
            if group and group not in groups:
                groups.append(group)
                message.oneof_decl.add(name=group)
            if group:
                added.oneof_index = groups.index(group)
    pool = (
        descriptor_pool.DescriptorPool()
    )  # a private pool: the real schemas may be loaded too
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{package}.{name}")
    )


_SAVED_MODEL = _classes("saved", TENSORFLOW)("SavedModel")
_ONNX_MODEL = _classes("network", ONNX)("Model")


def saved_model(data: bytes) -> Any:
    """Parse a SavedModel's graph, functions and objects.

    Raises:
        ValueError: the bytes are not a SavedModel.
    """
    return _parse(_SAVED_MODEL, data)


def onnx(data: bytes) -> Any:
    """Parse an ONNX model's graph.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return _parse(_ONNX_MODEL, data)


def check_structure(data: bytes, max_bytes: int) -> None:
    """Refuse an ONNX model with more than `max_bytes` besides its weights.

    A few bytes of an empty message take hundreds in memory once parsed.

    Raises:
        ValueError: it has more, or is not an ONNX model.
    """
    total = 0
    for size in _structure(data, 0, len(data), WEIGHTS):
        total += size
        if total > max_bytes:
            raise ValueError(f"holds more than {max_bytes} bytes besides its weights")


def _structure(
    data: bytes, at: int, end: int, weights: tuple[int, ...]
) -> Iterator[int]:
    """Yield the size of each field except the weights, at this path of field numbers."""
    for number, start, stop, size in _fields(data, at, end):
        if number != weights[0]:
            yield size
            continue
        yield size - (stop - start)  # of the field itself
        if len(weights) > 1:
            yield from _structure(data, start, stop, weights[1:])


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of a message: number, start and end of the content, total size.

    https://protobuf.dev/programming-guides/encoding
    """
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end)
            start = at
        elif kind == 2:
            size, at = _varint(data, at, end)
            start, at = at, at + size
        elif kind in (1, 5):
            start, at = at, at + (8 if kind == 1 else 4)
        else:
            raise ValueError("can't be read (a group)")
        if at > end:
            raise ValueError("can't be read (a field is cut off)")
        yield tag >> 3, start, at, at - begin


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("can't be read (a number is cut off)")


def _parse(kind: type[Message], data: bytes) -> Any:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"can't be read ({error})") from None
    return message
