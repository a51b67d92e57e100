"""Inference requests and responses of the Open Inference Protocol v2.

With Triton's extensions: binary tensors, classification, parameters
(https://github.com/triton-inference-server/server, `docs/protocol`).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle.metadata import Metadata
from model.bundle.vocabulary import KINDS
from service.codecs import (
    compression,
    native,
    open_inference_tensors,
    records,
    text,
    text_tensors,
)
from service.codecs.compression import Body
from service.codecs.open_inference_tensors import InputTensor
from service.codecs.validation import decode_json, invalid_field
from service.errors import InvalidRequest, TooLarge
from service.settings import Limits

PROBABILITIES = "probabilities"
TEXT_BYTES = 128  # of a class as text, while it is written


class RequestedOutput(msgspec.Struct):
    """An output tensor that the request names."""

    name: str
    parameters: dict[str, Any] | None = None


class InferenceHeader(msgspec.Struct):
    """The JSON of a request; unknown fields are ignored, as the protocol says."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How to write `probabilities`."""

    binary: bool = False
    top: int = 0  # so many classes as text, most probable first; 0: all numbers


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request."""

    sequences: list[np.ndarray]  # [T, F] float32 each
    steps: int  # of the padded tensor
    output: OutputFormat
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    # In place of sequences, of text and of records:
    tokens: list[Sequence[str]] | None = None
    records: list[list[dict[str, Any]]] | None = None

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return len(self.records or self.tokens or self.sequences)


_decoder = msgspec.json.Decoder(InferenceHeader)


def decode(
    body: Body,
    json_bytes: int | None,
    features: int,
    limits: Limits,
    kind: str = "frames",
    columns: records.Columns | None = None,
) -> InferRequest:
    """Decode a request to a model with so many features.

    Args:
        kind: of the model's input, see `Metadata`.
        columns: of a model that reads records.
        json_bytes: length of the JSON; None: of the whole body. 0: a raw request,
            whose body is the frames of one sequence.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    body = compression.whole(body)
    if json_bytes == 0 and kind != "frames":
        raise InvalidRequest(f"a model that reads {kind} takes no raw request")
    if json_bytes == 0:
        frames = open_inference_tensors.decode_raw(body, features, limits)
        return InferRequest([frames], len(frames), OutputFormat(binary=True))
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise InvalidRequest("Inference-Header-Content-Length exceeds the body")
    if columns is not None:
        records.check_size(body[:size], len(columns), limits)
    elif kind in KINDS:
        text.check_size(body[:size], features, limits)
    header = decode_json(_decoder, body[:size])
    binary = memoryview(body)[size:]
    parameters = header.parameters or {}
    output = _output_format(header.outputs or [], parameters)
    options = (output, header.id or "", parameters)
    if columns is not None:
        rows = records.decode_tensors(header.inputs, binary, columns, limits)
        return InferRequest([], max(map(len, rows)), *options, records=rows)
    if kind in KINDS:
        tokens = text_tensors.decode_tensors(
            header.inputs, binary, kind, features, limits
        )
        return InferRequest([], max(map(len, tokens)), *options, tokens)
    *sequences, padded = open_inference_tensors.decode(
        header.inputs, binary, features, limits
    )
    return InferRequest(sequences, padded.shape[1], *options)


def response_bytes(metadata: Metadata, sequences: int, request: InferRequest) -> int:
    """The approximate size of a response: it is padded like the request."""
    rows = sequences * (request.steps if metadata.task == "label" else 1)
    output, classes = request.output, len(metadata.classes)
    if output.top:
        return rows * min(output.top, classes) * TEXT_BYTES
    return rows * classes * (4 if output.binary else native.NUMBER_BYTES)


def check_response_size(metadata: Metadata, request: InferRequest) -> None:
    """Check the size of a response before anything is computed: padding can make that
    of a few short sequences long.

    Raises:
        TooLarge: the response would be too large.
    """
    limit = native.MAX_RESPONSE_BYTES
    if response_bytes(metadata, request.batch, request) > limit:
        raise TooLarge(f"the response, padded like the request, exceeds {limit} bytes")


def encode(
    metadata: Metadata, probabilities: list[np.ndarray], request: InferRequest
) -> tuple[bytes, int]:
    """The response's body, and how many bytes of it are JSON: a binary tensor follows
    it."""
    if metadata.task == "classify":
        numbers = np.stack(probabilities)
    else:  # padded like the request
        shape = (len(probabilities), request.steps, len(metadata.classes))
        numbers = np.zeros(shape, np.float32)
        for row, array in zip(numbers, probabilities, strict=True):
            row[: len(array)] = array
    output_format = request.output
    datatype, binary, data = "FP32", b"", numbers
    if output_format.top:
        datatype = "BYTES"
        data = _class_texts(numbers, metadata, probabilities, output_format.top)
    output: dict[str, Any] = {
        "name": PROBABILITIES,
        "datatype": datatype,
        "shape": data.shape,
    }
    if not output_format.binary:
        output["data"] = data.ravel().tolist() if output_format.top else data.ravel()
    else:
        if output_format.top:
            binary = _pack_texts(data)
        else:
            binary = data.astype("<f4", copy=False).tobytes()
        output["parameters"] = {"binary_data_size": len(binary)}
    body = {
        "model_name": metadata.name,
        "model_version": metadata.version,
        "id": request.id,
        "outputs": [output],
    }
    text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return text + binary, len(text)


def _output_format(
    outputs: list[RequestedOutput], parameters: dict[str, Any]
) -> OutputFormat:
    if len(outputs) > 1 or (outputs and outputs[0].name != PROBABILITIES):
        raise invalid_field("outputs", f"must name only {PROBABILITIES}")
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise invalid_field("parameters.binary_data_output", "must be true or false")
    if not outputs:
        return OutputFormat(binary)
    chosen = outputs[0].parameters or {}
    binary, top = chosen.get("binary_data", binary), chosen.get("classification", 0)
    path = "outputs[0].parameters"
    if any(name.startswith("shared_memory") for name in chosen):
        raise invalid_field(path, "shared memory is not supported")
    if type(binary) is not bool:
        raise invalid_field(f"{path}.binary_data", "must be true or false")
    if type(top) is not int or top < 0:
        raise invalid_field(f"{path}.classification", "must be a number of classes")
    return OutputFormat(binary, top)


def _class_texts(
    numbers: np.ndarray, metadata: Metadata, unpadded: list[np.ndarray], top: int
) -> np.ndarray:
    """`value:index:label`, most probable first: [B, k], or [B, T, k] with empty texts
    as padding."""
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
        for row, array in zip(shaped, unpadded, strict=True):
            row[len(array) :] = ""
    return shaped


def _pack_texts(texts: np.ndarray) -> bytes:
    """The datatype BYTES: each text's length in 4 bytes, then the text."""
    parts = [text.encode() for text in texts.ravel().tolist()]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)
