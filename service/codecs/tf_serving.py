"""Requests and responses of TensorFlow Serving's REST API v1.

Rows (`instances`) may differ in length, which TensorFlow Serving refuses; each result
is as long as its row (https://github.com/tensorflow/serving, `g3doc/api_rest.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle.metadata import Metadata
from model.bundle.vocabulary import Kind
from service.codecs import records, refusals, text_tensors
from service.codecs.validation import (
    check_limits,
    decode_json,
    invalid_field,
    to_arrays,
)
from service.settings import Limits

SERVING, STEP = "serving_default", "step"
PROBABILITIES = "probabilities"
MAX_STATE = 1e6  # no network's own state comes near

Frames = list[list[float]]  # [T, F]


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row with several inputs."""

    frames: Frames
    lengths: int | None = None
    state: list[float] | None = None


class Columns(msgspec.Struct, forbid_unknown_fields=True):
    """Each input of all rows."""

    frames: list[Frames]
    lengths: list[int] | None = None
    state: list[list[float]] | None = None


class PredictBody(msgspec.Struct):
    """The JSON of `:predict`; unknown fields are ignored, as in TensorFlow Serving."""

    signature_name: str = SERVING
    instances: list[Frames | Row] | None = None
    inputs: list[Frames] | Columns | None = None


class Example(msgspec.Struct, forbid_unknown_fields=True):
    """A `tf.Example` in JSON: its numbers flat, or by step."""

    frames: list[float | list[float]]


class ClassifyBody(msgspec.Struct):
    """The JSON of `:classify`."""

    examples: list[Example]
    signature_name: str = SERVING


@dataclass(frozen=True, slots=True)
class InstancesRequest:
    """A decoded `:predict` or `:classify`."""

    sequences: list[np.ndarray]  # [T, F] float32 each
    by_row: bool  # the response is row by row, else output by output
    states: list[bytes] = field(default_factory=list)  # [S] float32 to continue from
    step: bool = False  # the signature is `step`
    classify: bool = False
    # In place of sequences, of text and of records:
    tokens: list[Sequence[str]] | None = None
    records: list[list[dict[str, Any]]] | None = None
    names: list[str] = field(default_factory=list)  # of the sequences, for messages


_SHAPE_HINTS = refusals.shape_hints("inputs") | refusals.shape_hints("instances")
_predict = msgspec.json.Decoder(PredictBody)
_classify = msgspec.json.Decoder(ClassifyBody)


def decode(
    body: bytes, features: int, state_size: int, limits: Limits
) -> InstancesRequest:
    """Decode `:predict`.

    Args:
        features: that the model takes.
        state_size: 0 if the model has no signature `step`.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    request = decode_json(_predict, body, nested=Row, hints=_SHAPE_HINTS)
    step = request.signature_name == STEP and state_size > 0
    if request.signature_name not in (SERVING, "") and not step:
        raise invalid_field(
            "signature_name", "must be serving_default, or step if the model has it"
        )
    if (request.instances is None) == (request.inputs is None):
        raise invalid_field("body", "must have either instances or inputs")
    check_limits(limits, sequences=len(request.instances or ()))
    path, columns = _columns(request)
    check_limits(limits, sequences=len(columns.frames))
    if not columns.frames:
        raise invalid_field(path.partition("[")[0], "must not be empty")
    paths = [path.format(index) for index in range(len(columns.frames))]
    frames = _unpad(columns, paths)
    states = columns.state or []
    if states and not step:
        raise invalid_field("inputs", "state is an input of the signature step only")
    sequences = to_arrays(paths, frames, features, limits)
    packed = [_pack_state(state, state_size) for state in states]
    return InstancesRequest(sequences, request.instances is not None, packed, step)


def decode_text(
    body: bytes, kind: Kind, columns: int, limits: Limits
) -> InstancesRequest:
    """Decode `:predict` to a model that reads text.

    Args:
        columns: of ids for each token.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    tokens, by_row = text_tensors.decode_predict(body, kind, columns, limits)
    return InstancesRequest([], by_row, tokens=tokens)


def decode_records(
    body: bytes, columns: records.Columns, limits: Limits
) -> InstancesRequest:
    """Decode `:predict` to a model that reads records.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    sequences, by_row = records.decode_predict(body, columns, limits)
    path = "instances" if by_row else "inputs"
    names = [f"{path}[{index}]" for index in range(len(sequences))]
    return InstancesRequest([], by_row, records=sequences, names=names)


def decode_examples(body: bytes, features: int, limits: Limits) -> InstancesRequest:
    """Decode `:classify`.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    request = decode_json(_classify, body, nested=Example)
    if request.signature_name not in (SERVING, ""):
        raise invalid_field("signature_name", f"must be {SERVING}")
    if not request.examples:
        raise invalid_field("examples", "must not be empty")
    check_limits(limits, sequences=len(request.examples))
    paths = [f"examples[{index}].frames" for index in range(len(request.examples))]
    sequences = []
    for path, example in zip(paths, request.examples, strict=True):
        frames: Any = example.frames
        types = set(map(type, frames))
        if list not in types:
            if len(frames) % features:
                raise invalid_field(path, f"must have {features} numbers for each step")
            starts = range(0, len(frames), features)
            frames = [frames[start : start + features] for start in starts]
        elif len(types) > 1:
            raise invalid_field(path, "must be all numbers, or all lists of numbers")
        sequences.append(frames)
    arrays = to_arrays(paths, sequences, features, limits)
    return InstancesRequest(arrays, by_row=True, classify=True)


def encode(
    metadata: Metadata,
    probabilities: list[np.ndarray],
    states: list[bytes],
    request: InstancesRequest,
) -> bytes:
    """The response, each row at its own length."""
    if request.classify:  # every class with its probability, for each row
        results = [
            list(map(list, zip(metadata.classes, array.tolist(), strict=True)))
            for array in probabilities
        ]
        return orjson.dumps({"results": results})
    result: Any = probabilities
    if request.step:
        result = {
            PROBABILITIES: probabilities,
            "state": [np.frombuffer(state, np.float32) for state in states],
        }
        if request.by_row:
            rows = zip(*result.values(), strict=True)
            result = [dict(zip(result, row, strict=True)) for row in rows]
    body = {"predictions" if request.by_row else "outputs": result}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _columns(request: PredictBody) -> tuple[str, Columns]:
    """The path of a row's frames, and the inputs."""
    if isinstance(request.inputs, Columns):
        return "inputs.frames[{}]", request.inputs
    if request.inputs is not None:
        return "inputs[{}]", Columns(request.inputs)
    instances = request.instances or []
    rows = [row for row in instances if isinstance(row, Row)]
    if not rows:
        return "instances[{}]", Columns(instances)  # type: ignore[arg-type]
    if len(rows) < len(instances):
        raise invalid_field("instances", "must be all lists or all objects")
    inputs: dict[str, list[Any] | None] = {}
    for name in ("lengths", "state"):
        values = [getattr(row, name) for row in rows]
        missing = values.count(None)
        if missing not in (0, len(rows)):
            raise invalid_field("instances", "must all have the same fields")
        inputs[name] = None if missing else values
    return "instances[{}].frames", Columns([row.frames for row in rows], **inputs)


def _unpad(columns: Columns, paths: list[str]) -> list[Frames]:
    """The rows, cut to their `lengths`."""
    frames, lengths = columns.frames, columns.lengths
    for name, rows in (("lengths", lengths), ("state", columns.state)):
        if rows is not None and len(rows) != len(frames):
            message = f"{name} has {len(rows)} rows, but frames {len(frames)}"
            raise invalid_field("inputs", message)
    if lengths is None:
        return frames
    for path, row, length in zip(paths, frames, lengths, strict=True):
        if not 0 < length <= len(row):
            raise invalid_field(path, f"must have a length from 1 to {len(row)}")
    return [row[:length] for row, length in zip(frames, lengths, strict=True)]


def _pack_state(state: list[float], size: int) -> bytes:
    """A state as the workers take it."""
    with np.errstate(over="ignore"):  # overflow gives infinity, refused below
        packed = np.array(state, np.float32)
    if packed.shape != (size,) or not (np.abs(packed) <= MAX_STATE).all():
        raise invalid_field(
            "state", f"must be {size} finite numbers of at most {MAX_STATE:g}"
        )
    return packed.tobytes()
