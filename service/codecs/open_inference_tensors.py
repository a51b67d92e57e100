"""Input tensors of the Open Inference Protocol v2, as JSON or in binary.

A body is JSON, followed by the binary tensors in the order in which the JSON names
them: little-endian, row-major, nothing in between
(https://github.com/kserve/open-inference-protocol, `inference_rest.md`;
https://github.com/triton-inference-server/server, `extension_binary_data.md`).
"""

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
import simdjson

from service.codecs.validation import check_limits, invalid_field
from service.settings import Limits

FRAMES, LENGTHS = "frames", "lengths"
MAX_DIMENSION = 2**31  # the limits are far below


class Encoding(NamedTuple):
    """How a tensor's numbers are written."""

    datatype: str
    binary: str  # NumPy's type of the bytes
    json: str  # simdjson's type of the text
    parsed: type  # NumPy's type of simdjson's


ENCODINGS = {
    FRAMES: Encoding("FP32", "<f4", "d", np.float64),
    LENGTHS: Encoding("INT32", "<i4", "i", np.int64),
}


class InputTensor(msgspec.Struct):
    """A tensor of the request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


def decode(
    inputs: list[InputTensor], binary: memoryview, features: int, limits: Limits
) -> list[np.ndarray]:
    """Decode the inputs to sequences [T, F] float32, and last the padded tensor
    [B, T, F].

    Args:
        binary: the binary tensors.
        features: that the model takes.

    Raises:
        InvalidRequest, TooLarge: names the field.
    """
    arrays: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(inputs):
        path = f"inputs[{index}]"
        if tensor.name not in ENCODINGS or tensor.name in arrays:
            raise invalid_field(f"{path}.name", "must be frames or lengths, each once")
        _check(tensor, path, features, limits)
        size = _binary_size(tensor, path)
        if size is None:
            arrays[tensor.name] = _decode_json(tensor, path)
        else:
            if size > len(binary):
                raise invalid_field(
                    f"{path}.parameters.binary_data_size",
                    "exceeds the rest of the body",
                )
            numbers = np.frombuffer(binary[:size], ENCODINGS[tensor.name].binary)
            arrays[tensor.name] = numbers.reshape(tensor.shape)
            binary = binary[size:]
    if binary:
        raise invalid_field("body", "is longer than the binary_data_size of its inputs")
    if FRAMES not in arrays:
        raise invalid_field("inputs", "must contain frames")
    return [*_split(arrays[FRAMES], arrays.get(LENGTHS)), arrays[FRAMES]]


def decode_raw(body: bytes, features: int, limits: Limits) -> np.ndarray:
    """Decode a body that holds nothing but the numbers of one sequence [T, F].

    Raises:
        InvalidRequest, TooLarge: it can't be one.
    """
    steps, rest = divmod(len(body), 4 * features)
    if rest or not steps:
        raise invalid_field("body", f"must be FP32 numbers, {features} for each step")
    tensor = InputTensor(FRAMES, [1, steps, features], ENCODINGS[FRAMES].datatype)
    _check(tensor, "body", features, limits)
    frames = np.frombuffer(body, ENCODINGS[FRAMES].binary).reshape(tensor.shape)
    return _split(frames, None)[0]


def _check(tensor: InputTensor, path: str, features: int, limits: Limits) -> None:
    datatype, shape = ENCODINGS[tensor.name].datatype, tensor.shape
    if tensor.datatype != datatype:
        raise invalid_field(f"{path}.datatype", f"must be {datatype}")
    if not all(0 < size < MAX_DIMENSION for size in shape):
        raise invalid_field(f"{path}.shape", "must contain positive numbers")
    if tensor.name == LENGTHS:
        if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
            raise invalid_field(f"{path}.shape", "must be [batch]")
        return
    if len(shape) != 3 or shape[2] != features:
        raise invalid_field(f"{path}.shape", f"must be [batch, steps, {features}]")
    check_limits(limits, sequences=shape[0], steps=shape[1], numbers=math.prod(shape))


def _binary_size(tensor: InputTensor, path: str) -> int | None:
    """Bytes of a binary tensor; None if its numbers are JSON."""
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size != 4 * math.prod(tensor.shape):
        raise invalid_field(
            f"{path}.parameters.binary_data_size",
            f"must be {4 * math.prod(tensor.shape)} for this shape",
        )
    if bytes(tensor.data) not in (b"", b"null"):
        raise invalid_field(f"{path}.data", "must not be given with binary_data_size")
    return size


def _decode_json(tensor: InputTensor, path: str) -> np.ndarray:
    """A tensor of JSON numbers, flat or nested in any way, as in Triton."""
    encoding, count = ENCODINGS[tensor.name], math.prod(tensor.shape)
    try:
        data: Any = simdjson.Parser().parse(bytes(tensor.data))
        buffer = data.as_buffer(of_type=encoding.json)
        numbers: np.ndarray = np.frombuffer(buffer, encoding.parsed)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        raise invalid_field(f"{path}.data", "must be lists of numbers") from None
    if len(numbers) != count:
        raise invalid_field(
            f"{path}.data", f"has {len(numbers)} numbers, but its shape {count}"
        )
    if tensor.name == FRAMES:
        with np.errstate(over="ignore"):  # overflow gives infinity, refused later
            numbers = numbers.astype(np.float32)
    return numbers.reshape(tensor.shape)


def _split(frames: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    """The sequences of a padded tensor, without their padding."""
    batch, steps, _ = frames.shape
    counts = [steps] * batch if lengths is None else lengths.ravel().tolist()
    if len(counts) != batch:
        raise invalid_field(LENGTHS, f"must have {batch} numbers, one a sequence")
    for index, count in enumerate(counts):
        if not 0 < count <= steps:
            raise invalid_field(f"{LENGTHS}[{index}]", f"must be from 1 to {steps}")
    sequences = [row[:count] for row, count in zip(frames, counts, strict=True)]
    for index, sequence in enumerate(sequences):
        if not np.isfinite(sequence).all():
            raise invalid_field(f"{FRAMES}[{index}]", "must be finite in float32")
    return sequences
