"""Bytes to arrays and back, with every limit on the way.

The body is parsed by msgspec into exactly the shape that is asked for: numbers
only (no strings, booleans or nulls in their place), no unknown members. NaN and
infinity are no JSON. Of a member that is given twice the last one counts.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson

from model.bundle.bundle import Metadata
from service.codecs import frames
from service.errors import MAX_ERRORS, FieldError, InvalidJson, InvalidRequest, TooLarge
from service.settings import Limits, Settings

DIGITS = 16  # bytes of a number in JSON
LABEL_BYTES = 48  # of a class's name, with the names of members
ANSWER_BYTES = 32 * 2**20


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /classify` and `POST /label` take."""

    sequences: list[list[list[float]]]
    model: str | None = None
    top_k: int | None = None
    states: list[str | None] | None = None
    return_state: bool = False


T = TypeVar("T", bound=msgspec.Struct)

_decoder = msgspec.json.Decoder(Body)


def decode(body: bytes) -> Body:
    """The body's members.

    Raises:
        InvalidJson: no JSON.
        InvalidRequest: JSON of another shape; names the path.
    """
    return decoded(_decoder, body)


def decoded(
    decoder: msgspec.json.Decoder[T],
    text: bytes,
    what: str = "body",
    inner: type[msgspec.Struct] | None = None,
) -> T:
    """The members of a text that is called so, as `decode` has it.

    Args:
        inner: the objects within it.

    Raises:
        InvalidJson, InvalidRequest: as `decode`.
    """
    try:
        if not text.isascii():
            text.decode()  # also of members that are passed over
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        if message.startswith("Object contains unknown field"):
            # What msgspec says holds the caller's own text.
            kind = inner if path and inner else decoder.type
            names = ", ".join(kind.__struct_fields__)
            message = f"has a member other than {names}"
        path = path.rstrip("`").lstrip(".").replace("[...]", "[]")
        raise InvalidRequest(
            f"the {what} has another shape than is asked for",
            [FieldError(path or what, message)],
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        # What msgspec says holds a position, and nothing of the input.
        raise InvalidJson(str(error)) from None


def arrays(body: Body, features: int, settings: Settings) -> list[np.ndarray]:
    """The sequences [T, F] float32 of a request to a model of so many features.

    Raises:
        TooLarge: over a limit on sequences, steps or numbers.
        InvalidRequest: no sequence, no step, another feature count, another number
            of states, or a number that is not finite in float32; names each path.
    """
    sequences = body.sequences
    if len(sequences) > settings.max_sequences:
        raise TooLarge(f"at most {settings.max_sequences} sequences in a request")
    names = [f"sequences[{place}]" for place in range(len(sequences))]
    wrong = [] if sequences else [FieldError("sequences", "must not be empty")]
    if body.top_k is not None and body.top_k < 1:
        wrong.append(FieldError("top_k", "must be at least 1"))
    if body.states is not None and len(body.states) != len(sequences):
        told = f"has {len(body.states)} entries for {len(sequences)} sequences"
        wrong.append(FieldError("states", told))
    return checked(names, sequences, features, settings, wrong)


def checked(
    names: list[str],
    sequences: list[list[list[float]]],
    features: int,
    settings: Settings | Limits,
    wrong: Sequence[FieldError] = (),
) -> list[np.ndarray]:
    """The sequences [T, F] float32 that are called so.

    Args:
        wrong: what else is wrong.

    Raises:
        TooLarge, InvalidRequest: as `arrays`.
    """
    steps = [len(sequence) for sequence in sequences]
    if max(steps, default=0) > settings.max_steps:
        place = next(i for i, n in enumerate(steps) if n > settings.max_steps)
        limit = f"at most {settings.max_steps} steps in a sequence"
        raise TooLarge(limit, [FieldError(names[place], f"has {steps[place]} steps")])
    if sum(steps) * features > settings.max_cells:
        raise TooLarge(f"at most {settings.max_cells} numbers in a request")
    told, count, results = list(wrong), len(wrong), []
    for name, sequence in zip(names, sequences, strict=True):
        array = frames.array(sequence, features)
        if array is None:
            found, first = frames.faults(sequence, features, MAX_ERRORS)
            count += found
            left = MAX_ERRORS + len(wrong) - len(told)
            told += [FieldError(f"{name}{at}", why) for at, why in first[:left]]
        else:
            results.append(array)
    if told:
        raise InvalidRequest("the model can't take this", told, error_count=count)
    return results


def check_answer(
    metadata: Metadata, sequences: int, steps: int, top_k: int | None = None
) -> None:
    """That an answer to so many sequences, and steps in all, is not too long: it is
    larger than its request where a network has many classes.

    Raises:
        TooLarge: it is.
    """
    rows = steps if metadata.task == "label" else sequences
    classes = len(metadata.classes)
    if top_k is None:
        row = DIGITS * classes + LABEL_BYTES
    else:
        row = (DIGITS + LABEL_BYTES) * min(top_k, classes)
    if rows * row > ANSWER_BYTES:
        most = ANSWER_BYTES // row
        unit = "steps" if metadata.task == "label" else "sequences"
        raise TooLarge(f"the answer would be too long; at most {most} {unit}")


def encode(
    metadata: Metadata,
    answers: list[np.ndarray],
    top_k: int | None,
    members: list[dict[str, Any]],
) -> bytes:
    """The answer's JSON; numbers are written straight from the arrays.

    Args:
        members: what each prediction has besides; empty: nothing.
    """
    predictions = [prediction(metadata, answer, top_k) for answer in answers]
    for one, more in zip(predictions, members, strict=False):
        one |= more
    body = {
        "model": metadata.name,
        "version": metadata.version,
        "classes": metadata.classes,
        "predictions": predictions,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def prediction(
    metadata: Metadata, answer: np.ndarray, top_k: int | None
) -> dict[str, Any]:
    """The members of a sequence's prediction."""
    one = _sequence if metadata.task == "classify" else _steps
    return one(answer, metadata.classes, top_k)


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
