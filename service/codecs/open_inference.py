"""An inference request of the Open Inference Protocol v2, and its answer.

With Triton's extensions: binary tensors, classification, parameters
(https://github.com/triton-inference-server/server, `docs/protocol`).
"""

import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle.bundle import Metadata
from service.codecs import native, tensors
from service.codecs.tensors import Input, wrong
from service.errors import InvalidRequest, TooLarge
from service.settings import Limits

PROBABILITIES = "probabilities"
TEXT_BYTES = 128  # of a class as text, while it is written


class Output(msgspec.Struct):
    """A tensor that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class Head(msgspec.Struct):
    """The JSON of a request; other members are ignored, as the protocol has it."""

    inputs: list[Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How `probabilities` is to be answered."""

    binary: bool = False
    top: int = 0  # so many classes as text, best first; 0: the numbers


@dataclass(frozen=True, slots=True)
class Inference:
    """A request."""

    sequences: list[np.ndarray]  # [T, F] float32 each
    steps: int  # of the padded tensor
    wanted: Wanted
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


_decoder = msgspec.json.Decoder(Head)


def decode(
    body: bytes, json_bytes: int | None, features: int, limits: Limits
) -> Inference:
    """What is asked of a model of so many features.

    Args:
        json_bytes: of the body; None: all. 0: it is one sequence's frames and nothing
            else (a raw request).

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the member at fault.
    """
    if json_bytes == 0:
        frames = tensors.read_raw(body, features, limits)
        return Inference([frames], len(frames), Wanted(binary=True))
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise InvalidRequest("Inference-Header-Content-Length is more than the body")
    head = native.decoded(_decoder, body[:size])
    tail = memoryview(body)[size:]
    *sequences, padded = tensors.read(head.inputs, tail, features, limits)
    parameters = head.parameters or {}
    wanted = _wanted(head.outputs or [], parameters)
    return Inference(sequences, padded.shape[1], wanted, head.id or "", parameters)


def answer_bytes(metadata: Metadata, sequences: int, asked: Inference) -> int:
    """Bytes of an answer, about: padded as the request is."""
    rows = sequences * (asked.steps if metadata.task == "label" else 1)
    wanted, classes = asked.wanted, len(metadata.classes)
    if wanted.top:
        return rows * min(wanted.top, classes) * TEXT_BYTES
    return rows * classes * (4 if wanted.binary else native.DIGITS)


def check_answer(metadata: Metadata, asked: Inference) -> None:
    """That an answer is not too long.

    Raises:
        TooLarge: it would be: of a few short sequences, padded to a long shape, too.
    """
    if answer_bytes(metadata, len(asked.sequences), asked) > native.ANSWER_BYTES:
        told = f"the answer, padded as the request is, would have over {native.ANSWER_BYTES} bytes"
        raise TooLarge(told)


def encode(
    metadata: Metadata, answers: list[np.ndarray], asked: Inference
) -> tuple[bytes, int]:
    """The answer's body, and how much of it is JSON: all, or what comes before a
    binary tensor."""
    if metadata.task == "classify":
        numbers = np.stack(answers)
    else:  # padded as the request is
        shape = (len(answers), asked.steps, len(metadata.classes))
        numbers = np.zeros(shape, np.float32)
        for row, answer in zip(numbers, answers, strict=True):
            row[: len(answer)] = answer
    wanted = asked.wanted
    datatype, tail, data = "FP32", b"", numbers
    if wanted.top:
        datatype, data = "BYTES", _texts(numbers, metadata, answers, wanted.top)
    output: dict[str, Any] = {
        "name": PROBABILITIES,
        "datatype": datatype,
        "shape": data.shape,
    }
    if wanted.binary:
        tail = _joined(data) if wanted.top else data.astype("<f4", copy=False).tobytes()
        output["parameters"] = {"binary_data_size": len(tail)}
    else:
        output["data"] = data.ravel().tolist() if wanted.top else data.ravel()
    body = {
        "model_name": metadata.name,
        "model_version": metadata.version,
        "id": asked.id,
        "outputs": [output],
    }
    head = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return head + tail, len(head)


def _wanted(outputs: list[Output], parameters: dict[str, Any]) -> Wanted:
    if len(outputs) > 1 or (outputs and outputs[0].name != PROBABILITIES):
        raise wrong("outputs", f"must name {PROBABILITIES}, once")
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise wrong("parameters.binary_data_output", "must be true or false")
    if not outputs:
        return Wanted(binary)
    chosen = outputs[0].parameters or {}
    binary, top = chosen.get("binary_data", binary), chosen.get("classification", 0)
    path = "outputs[0].parameters"
    if any(name.startswith("shared_memory") for name in chosen):
        raise wrong(path, "can't ask for shared memory: there is none")
    if type(binary) is not bool:
        raise wrong(f"{path}.binary_data", "must be true or false")
    if type(top) is not int or top < 0:
        raise wrong(f"{path}.classification", "must be a number of classes")
    return Wanted(binary, top)


def _texts(
    numbers: np.ndarray, metadata: Metadata, answers: list[np.ndarray], top: int
) -> np.ndarray:
    """`value:index:label`, best first: [B, k], or [B, T, k] (empty past a length)."""
    count = min(top, len(metadata.classes))
    best = np.argsort(-numbers, axis=-1, kind="stable")[..., :count]
    values = np.take_along_axis(numbers, best, axis=-1)
    pairs = values.ravel().tolist(), best.ravel().tolist()
    texts = [
        f"{value:f}:{index}:{metadata.classes[index]}"
        for value, index in zip(*pairs, strict=True)
    ]
    shaped = np.array(texts, object).reshape(best.shape)
    if metadata.task == "label":
        for row, answer in zip(shaped, answers, strict=True):
            row[len(answer) :] = ""
    return shaped


def _joined(texts: np.ndarray) -> bytes:
    """BYTES: the length of each in 4 bytes before it."""
    parts = [text.encode() for text in texts.ravel().tolist()]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)
