"""Requests of text: tokens with their places, their ids, and spans of labelled tokens."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.bundle.spans import most_probable, of_codes, tagging_scheme
from model.bundle.vocabulary import Kind, Vocabulary, starts, tokenize
from service.codecs import validation
from service.errors import FieldError, InvalidRequest
from service.settings import Limits

AT_ONCE = 500  # tokens that are encoded before other requests have their turn


def to_tokens(
    texts: Sequence[str] | None,
    tokens: Sequence[Sequence[str]] | None,
    kind: Kind,
    limits: Limits,
    columns: int,
    names: Sequence[str] = (),
) -> list[list[str]]:
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
    results: list[list[str]] = []
    for content in contents:
        if isinstance(content, str):
            validation.check_limits(
                limits, steps=len(content) if kind != "tokens" else 0
            )
            results.append(tokenize(content, kind))
        else:
            results.append(content)
    empty = [
        FieldError(
            names[index] if names else f"{name}[{index}]",
            "must have at least one token",
        )
        for index, row in enumerate(results)
        if not row or not all(row)
    ]
    if empty:
        raise InvalidRequest(validation.MISMATCH, empty)
    steps = list(map(len, results))
    validation.check_limits(limits, steps=max(steps), numbers=columns * sum(steps))
    return results


async def encode(
    vocabulary: Vocabulary, tokens: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Return the ids of tokens as frames [T, K] float32.

    A word that is new takes some microseconds, so other requests have turns between.
    """
    frames = []
    since = 0  # tokens since the last turn of others
    for row in tokens:
        parts = []
        for start in range(0, len(row), AT_ONCE):
            part = row[start : start + AT_ONCE]
            if since + len(part) > AT_ONCE:
                await asyncio.sleep(0)
                since = 0
            parts.append(vocabulary.encode(part))
            since += len(part)
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
    probabilities: np.ndarray,
    tokens: Sequence[str],
    text: str | None,
) -> list[dict[str, Any]]:
    """Return the spans of labelled tokens, each with its least certain token's probability;
    see `model.bundle.spans`.

    Args:
        probabilities: [T, C] of the tokens.
        text: that the tokens are of; None for tokens that the client has cut.
    """
    scheme = tagging_scheme(classes)
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
    return [
        spans(classes, *values)
        for values in zip(probabilities, tokens, texts, strict=True)
    ]
