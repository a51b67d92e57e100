"""Input tensors of the Open Inference Protocol v2, as JSON or in binary.

A body is JSON, behind which the binary tensors follow in the order in which the
JSON names them: little-endian, row-major, nothing between them
(https://github.com/kserve/open-inference-protocol, `inference_rest.md`;
https://github.com/triton-inference-server/server, `extension_binary_data.md`).
"""

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
import simdjson

from service.errors import FieldError, InvalidRequest, TooLarge
from service.settings import Limits

FRAMES, LENGTHS = "frames", "lengths"
LARGEST = 2**31  # a dimension; the limits are far below


class Kind(NamedTuple):
    """Of a tensor's numbers."""

    datatype: str
    binary: str  # NumPy's type of the bytes
    json: str  # simdjson's type of the text
    parsed: type  # NumPy's type of that


KINDS = {
    FRAMES: Kind("FP32", "<f4", "d", np.float64),
    LENGTHS: Kind("INT32", "<i4", "i", np.int64),
}


class Input(msgspec.Struct):
    """A tensor of the request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


def read(
    inputs: list[Input], tail: memoryview, features: int, limits: Limits
) -> list[np.ndarray]:
    """The sequences [T, F] float32, and the padded tensor [B, T, F] last.

    Args:
        tail: the binary tensors.
        features: that the model takes.

    Raises:
        InvalidRequest, TooLarge: names the member at fault.
    """
    given: dict[str, np.ndarray] = {}
    for place, one in enumerate(inputs):
        path = f"inputs[{place}]"
        if one.name not in KINDS or one.name in given:
            raise wrong(f"{path}.name", "must be frames or lengths, each once")
        _check(one, path, features, limits)
        size = _bytes(one, path)
        if size is None:
            given[one.name] = _parsed(one, path)
        else:
            if size > len(tail):
                raise wrong(f"{path}.parameters.binary_data_size", "is not there")
            numbers = np.frombuffer(tail[:size], KINDS[one.name].binary)
            given[one.name] = numbers.reshape(one.shape)
            tail = tail[size:]
    if tail:
        raise wrong("body", "holds more than the binary_data_size of its inputs")
    if FRAMES not in given:
        raise wrong("inputs", "must hold frames")
    return [*_cut(given[FRAMES], given.get(LENGTHS)), given[FRAMES]]


def read_raw(body: bytes, features: int, limits: Limits) -> np.ndarray:
    """One sequence [T, F] of a body that is its numbers and nothing else.

    Raises:
        InvalidRequest, TooLarge: it can't be.
    """
    steps, rest = divmod(len(body), 4 * features)
    if rest or not steps:
        raise wrong("body", f"must be FP32 numbers, {features} a step")
    one = Input(FRAMES, [1, steps, features], KINDS[FRAMES].datatype)
    _check(one, "body", features, limits)
    frames = np.frombuffer(body, KINDS[FRAMES].binary).reshape(one.shape)
    return _cut(frames, None)[0]


def wrong(path: str, message: str) -> InvalidRequest:
    """The refusal of a member."""
    told = "the model can't take this"
    return InvalidRequest(told, [FieldError(path, message)])


def _check(one: Input, path: str, features: int, limits: Limits) -> None:
    datatype, shape = KINDS[one.name].datatype, one.shape
    if one.datatype != datatype:
        raise wrong(f"{path}.datatype", f"must be {datatype}")
    if not all(0 < size < LARGEST for size in shape):
        raise wrong(f"{path}.shape", "must hold positive numbers")
    if one.name == LENGTHS:
        if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
            raise wrong(f"{path}.shape", "must be [batch]")
        return
    if len(shape) != 3 or shape[2] != features:
        raise wrong(f"{path}.shape", f"must be [batch, steps, {features}]")
    if shape[0] > limits.max_sequences:
        raise TooLarge(f"at most {limits.max_sequences} sequences in a request")
    if shape[1] > limits.max_steps:
        raise TooLarge(f"at most {limits.max_steps} steps in a sequence")
    if math.prod(shape) > limits.max_cells:
        raise TooLarge(f"at most {limits.max_cells} numbers in a request")


def _bytes(one: Input, path: str) -> int | None:
    """How long a tensor's binary data is; None where it is JSON."""
    size = (one.parameters or {}).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size != 4 * math.prod(one.shape):
        told = f"must be {4 * math.prod(one.shape)}, of that shape"
        raise wrong(f"{path}.parameters.binary_data_size", told)
    if bytes(one.data) not in (b"", b"null"):
        raise wrong(f"{path}.data", "can't be given beside binary_data_size")
    return size


def _parsed(one: Input, path: str) -> np.ndarray:
    """A tensor of JSON numbers, flat or nested in whatever way (as Triton has it)."""
    kind = KINDS[one.name]
    try:
        data: Any = simdjson.Parser().parse(bytes(one.data))
        buffer = data.as_buffer(of_type=kind.json)
        numbers: np.ndarray = np.frombuffer(buffer, kind.parsed)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        raise wrong(f"{path}.data", "must be lists of numbers") from None
    if len(numbers) != math.prod(one.shape):
        told = f"has {len(numbers)} numbers, the shape {math.prod(one.shape)}"
        raise wrong(f"{path}.data", told)
    if one.name == FRAMES:
        with np.errstate(over="ignore"):  # infinite then, and refused
            numbers = numbers.astype(np.float32)
    return numbers.reshape(one.shape)


def _cut(frames: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    """Each row as far as its sequence goes."""
    batch, steps, _ = frames.shape
    counts = [steps] * batch if lengths is None else lengths.ravel().tolist()
    if len(counts) != batch:
        raise wrong(LENGTHS, f"must have {batch} numbers, one for each sequence")
    for place, count in enumerate(counts):
        if not 0 < count <= steps:
            raise wrong(f"{LENGTHS}[{place}]", f"must be from 1 to {steps}")
    sequences = [row[:count] for row, count in zip(frames, counts, strict=True)]
    for place, sequence in enumerate(sequences):
        if not np.isfinite(sequence).all():
            raise wrong(f"{FRAMES}[{place}]", "must be finite in float32")
    return sequences
