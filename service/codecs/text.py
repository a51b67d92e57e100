"""Requests of text: tokens with their places, their ids, and spans of labelled tokens."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.bundle.vocabulary import Kind, Token, Vocabulary, tokenize
from service.codecs import validation
from service.errors import FieldError, InvalidRequest
from service.settings import Limits

AT_ONCE = 2_000  # tokens that are encoded before other requests have their turn
NOWHERE = -1  # the place of a token that the client has cut itself
# The first letters of labels that say where in a span a token stands (BIO, BIOES, BILOU).
BEGIN, INSIDE, END, SINGLE = "B", "I", "EL", "SU"
OUTSIDE = "O"


def to_tokens(
    texts: Sequence[str] | None,
    tokens: Sequence[Sequence[str]] | None,
    kind: Kind,
    limits: Limits,
    columns: int,
    names: Sequence[str] = (),
) -> list[list[Token]]:
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
    results: list[list[Token]] = []
    for content in contents:
        if isinstance(content, str):
            validation.check_limits(
                limits, steps=len(content) if kind != "tokens" else 0
            )
            results.append(tokenize(content, kind))
        else:
            results.append([Token(text, NOWHERE, NOWHERE) for text in content])
    empty = [
        FieldError(
            names[index] if names else f"{name}[{index}]",
            "must have at least one token",
        )
        for index, row in enumerate(results)
        if not row or not all(token.text for token in row)
    ]
    if empty:
        raise InvalidRequest(validation.MISMATCH, empty)
    steps = list(map(len, results))
    validation.check_limits(limits, steps=max(steps), numbers=columns * sum(steps))
    return results


async def encode(
    vocabulary: Vocabulary, tokens: Sequence[Sequence[Token]]
) -> list[np.ndarray]:
    """Return the ids of tokens as frames [T, K] float32.

    A word that is new takes some microseconds, so other requests have turns between.
    """
    frames = []
    for row in tokens:
        parts = []
        for start in range(0, len(row), AT_ONCE):
            texts = [token.text for token in row[start : start + AT_ONCE]]
            parts.append(vocabulary.encode(texts))
            if len(row) > AT_ONCE:
                await asyncio.sleep(0)
        frames.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
    return frames


def token_fields(
    vocabulary: Vocabulary, tokens: Sequence[Token]
) -> list[dict[str, Any]]:
    """Return the tokens of a text as they are in a response."""
    return [
        {
            "text": token.text,
            "start": token.start,
            "end": token.end,
            "known": vocabulary.is_known(token.text),
        }
        for token in tokens
    ]


def spans(
    classes: Sequence[str],
    probabilities: np.ndarray,
    tokens: Sequence[Token],
    text: str | None,
) -> list[dict[str, Any]]:
    """Return the spans of labelled tokens, each with its least certain token's probability.

    Labels with `B-` and `I-` (BIO, BIOES, BILOU) are first made consistent by the most
    probable path (Viterbi). Others make a span of neighbours with the same label; a label
    O makes none.

    Args:
        probabilities: [T, C] of the tokens.
        text: that the tokens are of; None for tokens that the client has cut.
    """
    scheme = tagging_scheme(classes)
    path = (
        probabilities.argmax(1) if scheme is None else _best_path(probabilities, scheme)
    )
    results: list[dict[str, Any]] = []
    for step, code in enumerate(path.tolist()):
        prefix, label = scheme[code] if scheme else ("", classes[code])
        if label in ("", OUTSIDE):
            continue
        probability = float(probabilities[step, code])
        begins = prefix == BEGIN or (prefix and prefix in SINGLE)
        last = results[-1] if results else None
        if last and last["label"] == label and last["last"] == step - 1 and not begins:
            last["last"] = step
            last["probability"] = min(last["probability"], probability)
        else:
            results.append(
                {
                    "label": label,
                    "first": step,
                    "last": step,
                    "probability": probability,
                }
            )
    for span in results:
        _place(span, tokens, text)
    return results


def tagging_scheme(classes: Sequence[str]) -> dict[int, tuple[str, str]] | None:
    """Return the prefix and the type of each class (`B-PER`: B and PER); None if the
    classes have no such prefixes."""
    parts = {}
    for code, name in enumerate(classes):
        prefix, dash, label = name.partition("-")
        if name == OUTSIDE:
            parts[code] = ("", "")
        elif dash and label and len(prefix) == 1 and prefix in "BIELSU":
            parts[code] = (prefix, label)
        else:
            return None
    return parts if any(prefix == BEGIN for prefix, _ in parts.values()) else None


def _best_path(
    probabilities: np.ndarray, scheme: Mapping[int, tuple[str, str]]
) -> np.ndarray:
    """Return the most probable classes [T] of which each may follow the one before."""
    scores = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    parts = [scheme[code] for code in range(scores.shape[1])]
    inside = np.array([prefix == INSIDE or prefix in tuple(END) for prefix, _ in parts])
    open_ = np.array([prefix in (BEGIN, INSIDE) for prefix, _ in parts])
    types = np.array([label for _, label in parts])
    # Inside of a span only behind its own beginning.
    allowed = ~inside[None] | (open_[:, None] & (types[:, None] == types[None]))
    steps = np.where(allowed, 0.0, -np.inf)
    best, back = np.where(inside, -1e9, 0.0) + scores[0], []
    for row in scores[1:]:
        candidates = best[:, None] + steps
        back.append(candidates.argmax(0))
        best = candidates.max(0) + row
    path = [int(best.argmax())]
    for previous in reversed(back):
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1])


def _place(span: dict[str, Any], tokens: Sequence[Token], text: str | None) -> None:
    """Say where a span stands: in the text, or else among the tokens."""
    first, last = span.pop("first"), span.pop("last")
    if text is None:
        words = (token.text for token in tokens[first : last + 1])
        span |= {"first": first, "last": last, "text": " ".join(words)}
    else:
        start, end = tokens[first].start, tokens[last].end
        span |= {"start": start, "end": end, "text": text[start:end]}
