"""Checks that every JSON format shares: the shape of a body, and of its sequences.

msgspec parses a text into exactly the declared struct: numbers only where numbers are
declared, no unknown fields, no NaN or infinity. If a JSON key repeats, the last value
wins.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import TypeVar

import msgspec
import numpy as np

from service.codecs import refusals
from service.errors import (
    MAX_ERRORS,
    FieldError,
    InvalidRequest,
    TooLarge,
    WrongFeatureCount,
)
from service.settings import Limits, Settings

MISMATCH = "the request does not fit the model"
BLOCK_BYTES = (
    2**20
)  # that are looked at together, which takes some times as much memory

T = TypeVar("T", bound=msgspec.Struct)


def invalid_field(path: str, message: str) -> InvalidRequest:
    """The error of one field."""
    return InvalidRequest(MISMATCH, [FieldError(path, message)])


def decode_json(
    decoder: msgspec.json.Decoder[T],
    text: bytes,
    name: str = "body",
    nested: type[msgspec.Struct] | None = None,
    hints: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Decode a text to the decoder's struct.

    Args:
        name: what error messages call the text.
        nested: the struct of its inner objects, for error messages.
        hints: see `refusals.shape_hints`.

    Raises:
        InvalidJson: the text is not JSON; names the path of NaN and of infinities.
        InvalidRequest: it has another structure; names the path.
    """
    fields = decoder.type.__struct_fields__
    try:
        if not text.isascii():
            text.decode()  # msgspec does not check strings in skipped fields
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        inner = nested.__struct_fields__ if nested else ()
        raise refusals.wrong_structure(error, name, fields, inner, hints) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refusals.invalid_json(text, error, fields) from None


def check_limits(
    limits: Settings | Limits, *, sequences: int = 0, steps: int = 0, numbers: int = 0
) -> None:
    """Check a request's size.

    Args:
        steps: of its longest sequence.
        numbers: of all sequences together.

    Raises:
        TooLarge: the request exceeds a limit.
    """
    if sequences > limits.max_sequences:
        raise TooLarge(f"a request may have at most {limits.max_sequences} sequences")
    if steps > limits.max_steps:
        raise TooLarge(f"a sequence may have at most {limits.max_steps} steps")
    if numbers > limits.max_cells:
        raise TooLarge(f"a request may have at most {limits.max_cells} numbers")


def check_values(
    body: bytes, *, strings: int, lists: int, objects: int, members: int
) -> None:
    """Refuse a body that holds more values of a kind than any valid request, before it
    is parsed: an empty list takes thirty times as many bytes in memory.

    Args:
        members: of all objects together.

    Raises:
        TooLarge: the body holds more.
    """
    most = {b'"': 2 * strings, b"[": lists, b"{": objects, b":": members}
    if all(body.count(mark) <= count for mark, count in most.items()):
        return
    # Texts may hold any character, so only what is outside of them counts.
    text = body.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    inside = 0  # whether the block begins in a text
    for start in range(0, len(text), BLOCK_BYTES):
        block = np.frombuffer(text[start : start + BLOCK_BYTES], np.uint8)
        quotes = block == ord('"')
        parity = np.add.accumulate(quotes, dtype=np.uint8) + np.uint8(inside)
        outside = block[(parity % 2 == 0) | quotes]
        inside = int(parity[-1]) % 2
        for mark in most:
            most[mark] -= int(np.count_nonzero(outside == ord(mark)))
        if min(most.values()) < 0:
            raise TooLarge(
                "the body has more texts, lists or objects than a request may have"
            )


def to_arrays(
    paths: list[str],
    sequences: list[list[list[float]]],
    features: int,
    limits: Settings | Limits,
    errors: Sequence[FieldError] = (),
) -> list[np.ndarray]:
    """Convert nested lists to arrays [T, F] float32.

    Args:
        paths: of the sequences, for error messages.
        errors: what is already known to be wrong with the request.

    Raises:
        TooLarge: a limit on steps or numbers is exceeded.
        InvalidRequest: a sequence has no steps, another number of features, or a
            number that is not finite in float32; names each path.
        WrongFeatureCount: every step has the same number of features, another one.
    """
    steps = [len(sequence) for sequence in sequences]
    if max(steps, default=0) > limits.max_steps:
        index = next(i for i, n in enumerate(steps) if n > limits.max_steps)
        raise TooLarge(
            f"a sequence may have at most {limits.max_steps} steps",
            [FieldError(paths[index], f"has {steps[index]} steps")],
        )
    check_limits(limits, numbers=sum(steps) * features)
    all_errors, count, arrays = list(errors), len(errors), []
    for path, sequence in zip(paths, sequences, strict=True):
        array = _to_array(sequence, features)
        if array is None:
            number, first = _find_errors(sequence, features)
            count += number
            room = MAX_ERRORS + len(errors) - len(all_errors)
            all_errors += [FieldError(f"{path}{at}", why) for at, why in first[:room]]
        else:
            arrays.append(array)
    if not all_errors:
        return arrays
    widths = set(map(len, chain.from_iterable(sequences)))
    if len(widths) == 1 and features not in widths:
        misfit = WrongFeatureCount(MISMATCH, all_errors, error_count=count)
        (misfit.features,) = widths
        raise misfit
    raise InvalidRequest(MISMATCH, all_errors, error_count=count)


def _to_array(frames: list[list[float]], features: int) -> np.ndarray | None:
    """The array [T, F] float32, or None if the lists are invalid."""
    try:
        with np.errstate(over="ignore"):  # overflow gives infinity, checked below
            array = np.array(frames, np.float32)
    except ValueError:  # rows of different lengths
        return None
    if array.shape[1:] != (features,) or not np.isfinite(array).all():
        return None
    return array


def _find_errors(
    frames: list[list[float]], features: int
) -> tuple[int, list[tuple[str, str]]]:
    """The number of errors in a sequence; and the first ones, each with its place
    (`[3][1]`) and a message."""
    if not frames:
        return 1, [("", "must have at least one step")]
    widths = np.fromiter(map(len, frames), np.int64, len(frames))
    misshapen = widths != features
    flat = np.fromiter(chain.from_iterable(frames), np.float64, int(widths.sum()))
    with np.errstate(over="ignore"):
        infinite = ~np.isfinite(flat.astype(np.float32))
    infinite &= ~np.repeat(misshapen, widths)  # one error for a misshapen step
    ends = np.cumsum(widths)
    errors = [
        (step, -1, f"has {widths[step]} features, the model takes {features}")
        for step in np.flatnonzero(misshapen)[:MAX_ERRORS].tolist()
    ]
    for index in np.flatnonzero(infinite)[:MAX_ERRORS].tolist():
        step = int(np.searchsorted(ends, index, "right"))
        feature = index - int(ends[step] - widths[step])
        errors.append((step, feature, "must be finite in float32"))
    first = [
        (f"[{step}]" if feature < 0 else f"[{step}][{feature}]", message)
        for step, feature, message in sorted(errors)[:MAX_ERRORS]
    ]
    return int(misshapen.sum() + infinite.sum()), first
