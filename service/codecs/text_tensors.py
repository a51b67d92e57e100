"""Text in the requests of other servers' protocols.

Open Inference Protocol v2: the tensor `text` (BYTES [B]), or `tokens` (BYTES [B, T], with
`lengths`), as JSON or in binary, where each text has its length before it. TensorFlow
Serving: strings, or objects with `text`, `tokens` or `b64`.
"""

import base64
import binascii
import math
import struct
from collections.abc import Sequence

import msgspec

from model.bundle.vocabulary import Kind
from service.codecs import text, validation
from service.codecs.open_inference_tensors import InputTensor
from service.codecs.validation import invalid_field
from service.settings import Limits

TEXT, TOKENS, LENGTHS = "text", "tokens", "lengths"
LENGTH_BYTES = 4  # before each text of a binary tensor


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row of `instances`."""

    text: str | None = None
    tokens: list[str] | None = None
    b64: str | None = None


class Columns(msgspec.Struct, forbid_unknown_fields=True):
    """Each input of all rows."""

    text: list[str | Row] | None = None
    tokens: list[list[str]] | None = None


class PredictBody(msgspec.Struct):
    """The JSON of `:predict` to a model that reads text."""

    signature_name: str = ""
    instances: list[str | Row] | None = None
    inputs: list[str | Row] | Columns | None = None


_predict = msgspec.json.Decoder(PredictBody)
_strings = msgspec.json.Decoder(list[str | list[str]])
_lengths = msgspec.json.Decoder(list[int])


def decode_tensors(
    inputs: Sequence[InputTensor],
    binary: memoryview,
    kind: Kind,
    columns: int,
    limits: Limits,
) -> list[Sequence[str]]:
    """Decode the tensors of an inference request to tokens.

    Args:
        binary: the binary tensors.
        kind: that the model reads.
        columns: of ids for each token.

    Raises:
        InvalidRequest, TooLarge: names the field.
    """
    values: dict[str, list[str]] = {}
    shapes: dict[str, list[int]] = {}
    lengths: list[int] | None = None
    for index, tensor in enumerate(inputs):
        path = f"inputs[{index}]"
        expected = "INT32" if tensor.name == LENGTHS else "BYTES"
        if tensor.name not in (TEXT, TOKENS, LENGTHS) or tensor.name in shapes:
            names = "must be text, or tokens and lengths, each once"
            raise invalid_field(f"{path}.name", names)
        if tensor.datatype != expected:
            raise invalid_field(f"{path}.datatype", f"must be {expected}")
        if not tensor.shape or not all(size > 0 for size in tensor.shape):
            raise invalid_field(f"{path}.shape", "must contain positive numbers")
        count = math.prod(tensor.shape)
        validation.check_limits(limits, sequences=tensor.shape[0], numbers=count)
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(binary):
                path = f"{path}.parameters.binary_data_size"
                raise invalid_field(path, "exceeds the rest of the body")
            part, binary = bytes(binary[:size]), binary[size:]
        shapes[tensor.name] = tensor.shape
        if tensor.name == LENGTHS:
            lengths = (
                _json_lengths(tensor, path)
                if size is None
                else _unpack(part, count, path)
            )
        else:
            values[tensor.name] = (
                _json_texts(tensor, path)
                if size is None
                else unpack_texts(part, count, path)
            )
            if len(values[tensor.name]) != count:
                message = f"has {len(values[tensor.name])} texts, but its shape {count}"
                raise invalid_field(f"{path}.data", message)
    if binary:
        raise invalid_field("body", "is longer than the binary_data_size of its inputs")
    if len(values) != 1:
        raise invalid_field("inputs", "must contain text, or tokens")
    if TEXT in values:
        return text.to_tokens(values[TEXT], None, kind, limits, columns)
    rows = _rows(values[TOKENS], shapes[TOKENS], lengths)
    return text.to_tokens(None, rows, kind, limits, columns)


def decode_predict(
    body: bytes, kind: Kind, columns: int, limits: Limits
) -> tuple[list[Sequence[str]], bool]:
    """Decode TensorFlow Serving's `:predict` to tokens, and whether it is row by row.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    request = validation.decode_json(_predict, body, nested=Row)
    if request.signature_name not in ("", "serving_default"):
        raise invalid_field("signature_name", "must be serving_default")
    if (request.instances is None) == (request.inputs is None):
        raise invalid_field("body", "must have either instances or inputs")
    by_row, inputs = request.instances is not None, request.instances or request.inputs
    if isinstance(inputs, Columns):
        if (inputs.text is None) == (inputs.tokens is None):
            raise invalid_field("inputs", "must have either text or tokens")
        if inputs.tokens is not None:
            tokens = text.to_tokens(None, inputs.tokens, kind, limits, columns)
            return tokens, by_row
        inputs = inputs.text
    rows = inputs or []
    path = "instances" if by_row else "inputs"
    cut = [
        row.tokens for row in rows if isinstance(row, Row) and row.tokens is not None
    ]
    if cut and len(cut) == len(rows):
        return text.to_tokens(None, cut, kind, limits, columns), by_row
    texts = [_text_of(row, f"{path}[{index}]") for index, row in enumerate(rows)]
    return text.to_tokens(texts, None, kind, limits, columns), by_row


def _text_of(row: str | Row, path: str) -> str:
    if isinstance(row, str):
        return row
    if row.tokens is not None or (row.text is None) == (row.b64 is None):
        raise invalid_field(
            path, "must be a text, or have text, b64 or tokens, all alike"
        )
    if row.text is not None:
        return row.text
    try:
        return _decoded(base64.b64decode(row.b64 or "", validate=True), path)
    except binascii.Error:
        raise invalid_field(f"{path}.b64", "is not base64") from None


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise invalid_field(path, "is not UTF-8") from None


def _json_texts(tensor: InputTensor, path: str) -> list[str]:
    try:
        values = _strings.decode(tensor.data)
    except msgspec.DecodeError:
        raise invalid_field(f"{path}.data", "must be lists of texts") from None
    return [
        text
        for value in values
        for text in ([value] if isinstance(value, str) else value)
    ]


def _json_lengths(tensor: InputTensor, path: str) -> list[int]:
    try:
        return _lengths.decode(tensor.data)
    except msgspec.DecodeError:
        raise invalid_field(f"{path}.data", "must be a list of numbers") from None


def _unpack(data: bytes, count: int, path: str) -> list[int]:
    if len(data) != 4 * count:
        path = f"{path}.parameters.binary_data_size"
        raise invalid_field(path, f"must be {4 * count} for this shape")
    return list(struct.unpack(f"<{count}i", data))


def unpack_texts(data: bytes, count: int, path: str) -> list[str]:
    """The texts of a binary tensor of so many."""
    texts: list[str] = []
    start = 0
    while start < len(data):
        if len(texts) == count:
            raise invalid_field(path, f"has more than the {count} texts of its shape")
        content = start + LENGTH_BYTES
        end = content + int.from_bytes(data[start:content], "little")
        if end > len(data) or content > len(data):
            raise invalid_field(path, "has a text that is longer than the tensor")
        texts.append(_decoded(data[content:end], f"{path}[{len(texts)}]"))
        start = end
    return texts


def row_lengths(batch: int, steps: int, lengths: Sequence[int] | None) -> Sequence[int]:
    """The length of each row of a tensor [B, T].

    Raises:
        InvalidRequest: there are not as many, or one is not from 1 to T.
    """
    counts = [steps] * batch if lengths is None else lengths
    valid = all(type(count) is int and 0 < count <= steps for count in counts)
    if len(counts) != batch or not valid:
        raise invalid_field(LENGTHS, f"must be {batch} numbers from 1 to {steps}")
    return counts


def _rows(
    values: list[str], shape: list[int], lengths: list[int] | None
) -> list[Sequence[str]]:
    """The rows of a tensor [B, T], without their padding."""
    if len(shape) != 2:
        raise invalid_field("inputs", "the shape of tokens must be [batch, tokens]")
    batch, steps = shape
    counts = row_lengths(batch, steps, lengths)
    return [values[i * steps : i * steps + count] for i, count in enumerate(counts)]
