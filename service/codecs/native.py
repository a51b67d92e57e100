"""The JSON of `POST /classify` and `POST /label`, with every limit on the way."""

from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle.metadata import Metadata
from service.codecs import refusals, validation
from service.errors import FieldError, InvalidRequest, TooLarge
from service.settings import Limits

NUMBER_BYTES = 16  # of a number in JSON, at most
LABEL_BYTES = 48  # of a class's name with its JSON key, about
MAX_RESPONSE_BYTES = 32 * 2**20


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """The request's JSON; `api.schemas.Sequences` describes it in OpenAPI."""

    sequences: list[list[list[float]]] | None = None
    texts: list[str] | None = None
    tokens: list[list[str]] | None = None
    records: list[list[dict[str, Any]]] | None = None
    model: str | None = None
    top_k: int | None = None
    states: list[str | None] | None = None
    return_state: bool = False
    spans: bool = False


INPUTS = ("sequences", "texts", "tokens", "records")  # of which a body has one
_decoder = msgspec.json.Decoder(PredictBody)
NO_SPANS = FieldError("spans", "is for texts and tokens")
_SHAPE_HINTS = refusals.shape_hints("sequences")


def decode(body: bytes) -> PredictBody:
    """Decode a body.

    Raises:
        InvalidJson, InvalidRequest: see `validation.decode_json`; or not one of `INPUTS`
            is there.
    """
    decoded = validation.decode_json(_decoder, body, hints=_SHAPE_HINTS)
    inputs = [name for name in INPUTS if getattr(decoded, name) is not None]
    if len(inputs) != 1:
        choice = "give one of sequences, texts, tokens and records"
        message = f"is missing: {choice}" if not inputs else f"are too many: {choice}"
        path = " and ".join(inputs) or "sequences"
        raise InvalidRequest(validation.MISMATCH, [FieldError(path, message)])
    return decoded


def to_arrays(body: PredictBody, features: int, limits: Limits) -> list[np.ndarray]:
    """The sequences [T, F] float32 of a request to a model with so many features.

    Raises:
        TooLarge: a limit on sequences, steps or numbers is exceeded.
        InvalidRequest: a field doesn't fit the model; names each path.
    """
    sequences = body.sequences or []
    validation.check_limits(limits, sequences=len(sequences))
    errors = [] if sequences else [FieldError("sequences", "must not be empty")]
    errors += _option_errors(body, len(sequences))
    if body.spans:
        errors.append(NO_SPANS)
    paths = [f"sequences[{index}]" for index in range(len(sequences))]
    return validation.to_arrays(paths, sequences, features, limits, errors)


def check_options(body: PredictBody, sequences: int) -> None:
    """Check the fields beside the input, of a request with so many sequences.

    Raises:
        InvalidRequest: names each field.
    """
    errors = _option_errors(body, sequences)
    if body.spans and body.records is not None:
        errors.append(NO_SPANS)
    if errors:
        raise InvalidRequest(validation.MISMATCH, errors)


def _option_errors(body: PredictBody, sequences: int) -> list[FieldError]:
    errors = []
    if body.top_k is not None and body.top_k < 1:
        errors.append(FieldError("top_k", "must be at least 1"))
    if body.states is not None and len(body.states) != sequences:
        message = f"has {len(body.states)} entries for {sequences} sequences"
        errors.append(FieldError("states", message))
    return errors


def check_response_size(
    metadata: Metadata,
    sequences: int,
    steps: int,
    top_k: int | None = None,
    step_bytes: int = 0,
) -> None:
    """Check the size of a response before anything is computed: with many classes it is
    larger than its request.

    Args:
        steps: of all sequences together.
        step_bytes: of the fields of each step besides its label and probabilities.

    Raises:
        TooLarge: the response would exceed `MAX_RESPONSE_BYTES`.
    """
    rows = steps if metadata.task == "label" else sequences
    classes = len(metadata.classes)
    if top_k is None:
        row_bytes = NUMBER_BYTES * classes + LABEL_BYTES
    else:
        row_bytes = (NUMBER_BYTES + LABEL_BYTES) * min(top_k, classes)
    if metadata.task == "label":
        row_bytes += step_bytes
    if rows * row_bytes > MAX_RESPONSE_BYTES:
        most = MAX_RESPONSE_BYTES // row_bytes
        unit = "steps" if metadata.task == "label" else "sequences"
        raise TooLarge(f"the response would be too large; send at most {most} {unit}")


def encode(
    metadata: Metadata,
    probabilities: list[np.ndarray],
    top_k: int | None,
    extra_fields: list[dict[str, Any]],
) -> bytes:
    """The response's JSON; numbers are written straight from the arrays.

    Args:
        extra_fields: further fields of each prediction; empty: none.
    """
    predictions = [prediction(metadata, array, top_k) for array in probabilities]
    for fields, extra in zip(predictions, extra_fields, strict=False):
        fields |= extra
    body = {
        "model": metadata.name,
        "version": metadata.version,
        "classes": metadata.classes,
        "predictions": predictions,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def prediction(
    metadata: Metadata, probabilities: np.ndarray, top_k: int | None
) -> dict[str, Any]:
    """The fields of a sequence's prediction.

    Args:
        probabilities: [C] of a sequence (classify), or [T, C] of its steps (label).
    """
    classes = metadata.classes
    fields: dict[str, Any]
    if metadata.task == "classify":
        best = int(probabilities.argmax())
        fields = {"label": classes[best], "probability": probabilities[best]}
        if top_k is not None:
            return fields | {"top": _top(probabilities, classes, top_k)}
    else:
        fields = {"labels": [classes[k] for k in probabilities.argmax(1).tolist()]}
        if top_k is not None:
            return fields | {"top": [_top(p, classes, top_k) for p in probabilities]}
    return fields | {"probabilities": np.ascontiguousarray(probabilities)}


def _top(
    probabilities: np.ndarray, classes: tuple[str, ...], top_k: int
) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [{"label": classes[k], "probability": probabilities[k]} for k in order]
