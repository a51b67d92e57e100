"""Requests of TensorFlow Serving's REST API v1, and their answers.

Rows (`instances`) may differ in length, which TensorFlow Serving refuses; each answer
is as long as its row (https://github.com/tensorflow/serving, `g3doc/api_rest.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle.bundle import Metadata
from service.codecs import fast_json, native
from service.codecs.tensors import wrong
from service.errors import TooLarge
from service.settings import Limits, Settings

SERVING, STEP = "serving_default", "step"
PROBABILITIES = "probabilities"
LARGEST_STATE = 1e6  # no network's own comes near
SIGNATURE = "must be serving_default, or step of a network that can be stepped"

Frames = list[list[float]]  # [T, F]


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row of several inputs."""

    frames: Frames
    lengths: int | None = None
    state: list[float] | None = None


class Columns(msgspec.Struct, forbid_unknown_fields=True):
    """Each input of all rows."""

    frames: list[Frames]
    lengths: list[int] | None = None
    state: list[list[float]] | None = None


class Predict(msgspec.Struct):
    """What `:predict` takes; other members are ignored, as they are there."""

    signature_name: str = SERVING
    instances: list[Frames | Row] | None = None
    inputs: list[Frames] | Columns | None = None


class Example(msgspec.Struct, forbid_unknown_fields=True):
    """A `tf.Example` in JSON: its numbers in a row, or step by step."""

    frames: list[float | list[float]]


class Classify(msgspec.Struct):
    """What `:classify` takes."""

    examples: list[Example]
    signature_name: str = SERVING


@dataclass(frozen=True, slots=True)
class Instances:
    """What is asked."""

    sequences: list[np.ndarray]  # [T, F] float32 each
    rows: bool  # answered row by row, else output by output
    states: list[bytes] = field(default_factory=list)  # [S] float32, to be stepped on
    step: bool = False  # the signature


_predict = msgspec.json.Decoder(Predict)
_classify = msgspec.json.Decoder(Classify)


def decode(
    body: bytes, features: int, state_size: int, limits: Settings | Limits
) -> Instances:
    """What `:predict` is asked of a model.

    Args:
        state_size: 0 where it has no signature `step`.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the member at fault.
    """
    given = native.decoded(_predict, body, inner=Row)
    step = given.signature_name == STEP and state_size > 0
    if given.signature_name not in (SERVING, "") and not step:
        raise wrong("signature_name", SIGNATURE)
    if (given.instances is None) == (given.inputs is None):
        raise wrong("body", "must hold either instances or inputs")
    if given.instances is not None:
        _check_count(given.instances, limits)
    path, columns = _columns(given)
    _check_count(columns.frames, limits)
    if not columns.frames:
        raise wrong(path.partition("[")[0], "must not be empty")
    paths = [path.format(place) for place in range(len(columns.frames))]
    frames = _cut(columns, paths)
    states = columns.state or []
    if states and not step:
        raise wrong("inputs", "state is an input of the signature step")
    sequences = native.checked(paths, frames, features, limits)
    packed = [_packed(one, state_size) for one in states]
    return Instances(sequences, given.instances is not None, packed, step)


def _check_count(rows: Sequence[Any], limits: Settings | Limits) -> None:
    if len(rows) > limits.max_sequences:
        raise TooLarge(f"at most {limits.max_sequences} sequences in a request")


def _columns(given: Predict) -> tuple[str, Columns]:
    """The inputs, and where the frames of a row are."""
    if isinstance(given.inputs, Columns):
        return "inputs.frames[{}]", given.inputs
    if given.inputs is not None:
        return "inputs[{}]", Columns(given.inputs)
    instances = given.instances or []
    rows = [one for one in instances if isinstance(one, Row)]
    if not rows:
        return "instances[{}]", Columns(instances)  # type: ignore[arg-type]
    if len(rows) < len(instances):
        raise wrong("instances", "must be all lists or all objects")
    members: dict[str, list[Any] | None] = {}
    for name in ("lengths", "state"):
        values = [getattr(row, name) for row in rows]
        missing = values.count(None)
        if missing not in (0, len(rows)):
            raise wrong("instances", "must all have the same members")
        members[name] = None if missing else values
    return "instances[{}].frames", Columns([row.frames for row in rows], **members)


def _cut(columns: Columns, paths: list[str]) -> list[Frames]:
    """The rows as long as they are said to be."""
    frames, lengths = columns.frames, columns.lengths
    for name, other in (("lengths", lengths), ("state", columns.state)):
        if other is not None and len(other) != len(frames):
            told = f"{name} has {len(other)} rows, frames {len(frames)}"
            raise wrong("inputs", told)
    if lengths is None:
        return frames
    for path, row, length in zip(paths, frames, lengths, strict=True):
        if not 0 < length <= len(row):
            raise wrong(path, f"has {len(row)} steps, which its length must fit")
    return [row[:length] for row, length in zip(frames, lengths, strict=True)]


def _packed(state: list[float], size: int) -> bytes:
    """A state as the workers take it."""
    with np.errstate(over="ignore"):  # infinite then, and refused
        packed = np.array(state, np.float32)
    if packed.shape != (size,) or not (np.abs(packed) <= LARGEST_STATE).all():
        told = f"must be {size} finite numbers, none beyond {LARGEST_STATE:g}"
        raise wrong("state", told)
    return packed.tobytes()


def decode_examples(
    body: bytes, features: int, limits: Settings | Limits
) -> list[np.ndarray]:
    """The sequences of `:classify`.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the member at fault.
    """
    of = limits.limits if isinstance(limits, Settings) else limits
    fast_json.check_size(body, fast_json.lists(body), features, of)
    given = native.decoded(_classify, body, inner=Example)
    if given.signature_name not in (SERVING, ""):
        raise wrong("signature_name", f"must be {SERVING}")
    if not given.examples:
        raise wrong("examples", "must not be empty")
    _check_count(given.examples, limits)
    paths = [f"examples[{place}].frames" for place in range(len(given.examples))]
    sequences = []
    for path, example in zip(paths, given.examples, strict=True):
        frames: Any = example.frames
        kinds = set(map(type, frames))
        if list not in kinds:
            if len(frames) % features:
                raise wrong(path, f"must be {features} numbers a step")
            at = range(0, len(frames), features)
            frames = [frames[start : start + features] for start in at]
        elif len(kinds) > 1:
            raise wrong(path, "must be all numbers, or all lists of them")
        sequences.append(frames)
    return native.checked(paths, sequences, features, limits)


def encode(answers: list[np.ndarray], states: list[bytes], asked: Instances) -> bytes:
    """The answer to `:predict`, each row at its own length."""
    outputs: dict[str, list[np.ndarray]] = {PROBABILITIES: answers}
    if asked.step:
        outputs["state"] = [np.frombuffer(state, np.float32) for state in states]
    told: Any
    if not asked.step:
        told = answers
    elif asked.rows:
        rows = zip(*outputs.values(), strict=True)
        told = [dict(zip(outputs, row, strict=True)) for row in rows]
    else:
        told = outputs
    body = {"predictions" if asked.rows else "outputs": told}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_classes(metadata: Metadata, answers: list[np.ndarray]) -> bytes:
    """The answer to `:classify`: every class with its probability, for each row."""
    results = [
        list(map(list, zip(metadata.classes, answer.tolist(), strict=True)))
        for answer in answers
    ]
    return orjson.dumps({"results": results})
