"""Requests of text: tokens with their places, their ids, and spans of labelled tokens."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.bundle.spans import Scheme, most_probable, of_codes, tagging_scheme
from model.bundle.vocabulary import MAX_TOKEN, Kind, Vocabulary, starts, tokenize
from service.codecs import validation
from service.errors import FieldError, InvalidRequest
from service.settings import Limits

AT_ONCE = 500  # tokens that are encoded before other requests have their turn, and
LETTERS = 64  # letters of each: fewer tokens if they are longer


def check_size(body: bytes, columns: int, limits: Limits) -> None:
    """Refuse a body with more values than a request of text may have; see
    `validation.check_values`.

    Args:
        columns: of ids for each token; a number each.
    """
    few = 2 * limits.max_sequences + 64  # rows of `/v1`, and other fields
    tokens = limits.max_cells // max(1, columns)
    validation.check_values(
        body, strings=tokens + few, lists=few, objects=few, members=2 * few
    )


def to_tokens(
    texts: Sequence[str] | None,
    tokens: Sequence[Sequence[str]] | None,
    kind: Kind,
    limits: Limits,
    columns: int,
    names: Sequence[str] = (),
) -> list[Sequence[str]]:
    """Return the tokens of a request's texts, or those that it holds.

    Args:
        columns: of ids for each token; a number each.
        names: of the texts in error messages. Default: `texts[0]`, ...

    Raises:
        InvalidRequest: a text has no token, or the tokens are for a network of
            characters; names each path.
        TooLarge: a limit on sequences, steps or numbers is exceeded.
    """
    name = "texts" if tokens is None else "tokens"
    if tokens is not None and kind == "characters":
        message = "the model reads characters: send texts"
        raise validation.invalid_field("tokens", message)
    contents: Sequence[Any] = (texts if tokens is None else tokens) or ()
    validation.check_limits(limits, sequences=len(contents))
    if not contents:
        raise validation.invalid_field(name, "must not be empty")
    results: list[Sequence[str]] = []
    room = limits.max_cells // max(1, columns)  # for tokens
    for content in contents:
        row = content  # a text of characters is a sequence of them
        if isinstance(content, str) and kind == "tokens":
            # One token more than allowed is enough to refuse a text.
            row = tokenize(content, kind, 1 + min(limits.max_steps, room))
        room -= len(row)
        numbers = 0 if room >= 0 else 1 + limits.max_cells
        validation.check_limits(limits, steps=len(row), numbers=numbers)
        results.append(row)
    errors = []
    for index, row in enumerate(results):
        path = names[index] if names else f"{name}[{index}]"
        if not row:
            errors.append(FieldError(path, "must have at least one token"))
        elif not all(row):
            place = next(place for place, token in enumerate(row) if not token)
            errors.append(FieldError(f"{path}[{place}]", "is empty"))
        elif tokens is not None and max(map(len, row)) > MAX_TOKEN:
            message = f"has a token of more than {MAX_TOKEN:,} characters"
            errors.append(FieldError(path, message))
    if errors:
        raise InvalidRequest(validation.MISMATCH, errors)
    return results


async def encode(
    vocabulary: Vocabulary, tokens: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Return the ids of tokens as frames [T, K] float32.

    A word that is new takes some microseconds, a long one more, so other requests have
    turns between.
    """
    frames = []
    since = 0.0  # share of a turn, since the last turn of others
    for row in tokens:
        parts = []
        longest = max(map(len, row)) if isinstance(row, list) else 1
        at_once = max(1, AT_ONCE * LETTERS // max(LETTERS, longest))
        for start in range(0, len(row), at_once):
            part = row[start : start + at_once]
            share = len(part) / at_once
            if since + share > 1:
                await asyncio.sleep(0)
                since = 0.0
            parts.append(vocabulary.encode(part))
            since += share
        frames.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
    return frames


def token_fields(
    vocabulary: Vocabulary, tokens: Sequence[str], text: str
) -> list[dict[str, Any]]:
    """Return the tokens of a text as they are in a response."""
    return [
        {
            "text": token,
            "start": start,
            "end": start + len(token),
            "known": vocabulary.is_known(token),
        }
        for token, start in zip(tokens, starts(text, tokens), strict=True)
    ]


def spans(
    classes: Sequence[str],
    scheme: Scheme | None,
    probabilities: np.ndarray,
    tokens: Sequence[str],
    text: str | None,
) -> list[dict[str, Any]]:
    """Return the spans of labelled tokens, each with its least certain token's probability;
    see `model.bundle.spans`.

    Args:
        scheme: `tagging_scheme` of the classes.
        probabilities: [T, C] of the tokens.
        text: that the tokens are of; None for tokens that the client has cut.
    """
    path = most_probable(probabilities, scheme)
    results: list[dict[str, Any]] = []
    begins = [] if text is None else starts(text, tokens)
    for label, first, last in of_codes(path.tolist(), classes, scheme):
        steps = np.arange(first, last + 1)
        probability = float(probabilities[steps, path[steps]].min())
        span: dict[str, Any] = {"label": label, "probability": probability}
        if text is None:
            words = " ".join(tokens[first : last + 1])
            span |= {"first": first, "last": last, "text": words}
        else:
            start, end = begins[first], begins[last] + len(tokens[last])
            span |= {"start": start, "end": end, "text": text[start:end]}
        results.append(span)
    return results


def all_spans(
    classes: Sequence[str],
    probabilities: Sequence[np.ndarray],
    tokens: Sequence[Sequence[str]],
    texts: Sequence[str | None],
) -> list[list[dict[str, Any]]]:
    """Return the spans of each sequence, as `spans` does."""
    scheme = tagging_scheme(classes)
    return [
        spans(classes, scheme, *values)
        for values in zip(probabilities, tokens, texts, strict=True)
    ]
