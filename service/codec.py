"""Bytes to arrays and back, with every limit on the way.

The body is parsed by msgspec into exactly the shape that is asked for: numbers
only (no strings, booleans or nulls in their place), no unknown members. NaN and
infinity are no JSON. Of a member that is given twice the last one counts.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import orjson

from model.bundle import Metadata

from .errors import MAX_ERRORS, FieldError, InvalidJson, InvalidRequest, TooLarge
from .settings import Settings


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /classify` and `POST /label` take."""

    sequences: list[list[list[float]]]
    model: str | None = None
    top_k: int | None = None


_decoder = msgspec.json.Decoder(Body)


def decode(body: bytes) -> Body:
    """The body's members.

    Raises:
        InvalidJson: no JSON.
        InvalidRequest: JSON of another shape; names the path.
    """
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        if message.startswith("Object contains unknown field"):
            # What msgspec says holds the caller's own text.
            message = f"has a member other than {', '.join(Body.__struct_fields__)}"
        path = path.rstrip("`").lstrip(".").replace("[...]", "[]")
        raise InvalidRequest(
            "the body has another shape than is asked for",
            [FieldError(path or "body", message)],
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        # What msgspec says holds a position, and nothing of the input.
        raise InvalidJson(str(error)) from None


def arrays(body: Body, features: int, settings: Settings) -> list[np.ndarray]:
    """The sequences [T, F] float32 of a request to a model of so many features.

    Raises:
        TooLarge: over a limit on sequences, steps or numbers.
        InvalidRequest: no sequence, no step, another feature count, or a number
            that is not finite in float32; names each path.
    """
    sequences = body.sequences
    if len(sequences) > settings.max_sequences:
        raise TooLarge(f"at most {settings.max_sequences} sequences in a request")
    steps = [len(sequence) for sequence in sequences]
    if max(steps, default=0) > settings.max_steps:
        place = next(i for i, n in enumerate(steps) if n > settings.max_steps)
        path = f"sequences[{place}]"
        limit = f"at most {settings.max_steps} steps in a sequence"
        raise TooLarge(limit, [FieldError(path, f"has {steps[place]} steps")])
    if sum(steps) * features > settings.max_cells:
        raise TooLarge(f"at most {settings.max_cells} numbers in a request")
    count = 0
    wrong = [] if sequences else [FieldError("sequences", "must not be empty")]
    if body.top_k is not None and body.top_k < 1:
        wrong.append(FieldError("top_k", "must be at least 1"))
    results = []
    for place, sequence in enumerate(sequences):
        array = _array(sequence, features)
        if array is None:
            for at, message in _faults(sequence, features):
                count += 1
                if count <= MAX_ERRORS:
                    name = "".join(f"[{index}]" for index in (place, *at))
                    wrong.append(FieldError(f"sequences{name}", message))
        else:
            results.append(array)
    if wrong:
        told = min(count, MAX_ERRORS)
        raise InvalidRequest(
            "the model can't take this",
            wrong,
            error_count=len(wrong) - told + count,
        )
    return results


def _array(sequence: list[list[float]], features: int) -> np.ndarray | None:
    """[T, F], or None where something is wrong with it."""
    try:
        with np.errstate(over="ignore"):  # infinite then, and refused below
            array = np.array(sequence, np.float32)
    except ValueError:
        return None  # ragged
    if array.ndim != 2 or array.shape[1] != features or not np.isfinite(array).all():
        return None
    return array


def _faults(
    sequence: list[list[float]], features: int
) -> Iterator[tuple[tuple[int, ...], str]]:
    """What is wrong with a sequence: the place within it, and why."""
    if not sequence:
        yield (), "must have at least one step"
    for step, frame in enumerate(sequence):
        if len(frame) != features:
            yield (step,), f"has {len(frame)} features, the model takes {features}"
            continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.array(frame, np.float32))
        if not finite.all():
            for place in np.flatnonzero(~finite).tolist():
                yield (step, place), "must be finite in float32"


def encode(metadata: Metadata, answers: list[np.ndarray], top_k: int | None) -> bytes:
    """The answer's JSON; numbers are written straight from the arrays."""
    one = _sequence if metadata.task == "classify" else _steps
    body = {
        "model": metadata.name,
        "version": metadata.version,
        "classes": metadata.classes,
        "predictions": [one(answer, metadata.classes, top_k) for answer in answers],
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _sequence(
    probabilities: np.ndarray, classes: tuple[str, ...], top_k: int | None
) -> dict[str, Any]:
    best = int(probabilities.argmax())
    prediction = {"label": classes[best], "probability": probabilities[best]}
    if top_k is None:
        return prediction | {"probabilities": np.ascontiguousarray(probabilities)}
    return prediction | {"top": _top(probabilities, classes, top_k)}


def _steps(
    probabilities: np.ndarray, classes: tuple[str, ...], top_k: int | None
) -> dict[str, Any]:
    labels = [classes[best] for best in probabilities.argmax(1).tolist()]
    if top_k is None:
        rows = np.ascontiguousarray(probabilities)
        return {"labels": labels, "probabilities": rows}
    return {"labels": labels, "top": [_top(p, classes, top_k) for p in probabilities]}


def _top(
    probabilities: np.ndarray, classes: tuple[str, ...], top_k: int
) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [{"label": classes[k], "probability": probabilities[k]} for k in order]
