"""Spans of labelled tokens: BIO, BIOES and BILOU labels, made consistent by Viterbi.

`B-PER I-PER O` is a span of the type PER over the first two tokens. Labels without such
prefixes make a span of neighbours with the same label; a label O makes none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model.bundle.vocabulary import starts

# The first letters of labels that say where in a span a token stands.
BEGIN, INSIDE, END, SINGLE = "B", "I", "EL", "SU"
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Scheme:
    """Labels with prefixes: the prefix and the type of each class, and what may precede it.

    An inside class may follow the open classes of its own type alone (at most `B-` and
    `I-`), so a path costs as much as there are classes, not their square.
    """

    parts: Sequence[tuple[str, str]]
    inside: np.ndarray  # [C] bool: the class continues a span
    previous: np.ndarray  # [C, 2] the classes that may precede an inside class
    possible: np.ndarray  # [C, 2] bool: whether they exist


class Span(NamedTuple):
    """A span, by the numbers of its first and last token."""

    label: str
    first: int
    last: int


def tagging_scheme(classes: Sequence[str]) -> Scheme | None:
    """Return the prefix and the type of each class (`B-PER`: B and PER); None if the
    classes have no such prefixes."""
    parts = []
    for name in classes:
        prefix, dash, label = name.partition("-")
        if name == OUTSIDE:
            parts.append(("", ""))
        elif dash and label and len(prefix) == 1 and prefix in "BIELSU":
            parts.append((prefix, label))
        else:
            return None
    if all(prefix != BEGIN for prefix, _ in parts):
        return None
    inside = np.array([prefix == INSIDE or prefix in tuple(END) for prefix, _ in parts])
    opened: dict[str, list[int]] = {}
    for code, (prefix, label) in enumerate(parts):
        if prefix in (BEGIN, INSIDE):
            opened.setdefault(label, []).append(code)
    previous = np.zeros((len(parts), 2), np.intp)
    possible = np.zeros((len(parts), 2), bool)
    for code in np.flatnonzero(inside).tolist():
        codes = opened.get(parts[code][1], [])
        previous[code, : len(codes)] = codes
        possible[code, : len(codes)] = True
    return Scheme(parts, inside, previous, possible)


def most_probable(probabilities: np.ndarray, scheme: Scheme | None) -> np.ndarray:
    """Return the class of each token [T]: the most probable one or, with a scheme, that of
    the most probable path of classes of which each may follow the one before.

    Args:
        probabilities: [T, C].
    """
    if scheme is None:
        return probabilities.argmax(1)
    scores = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    rows = np.arange(scores.shape[1])
    best, back = np.where(scheme.inside, -1e9, 0.0) + scores[0], []
    for row in scores[1:]:
        # Inside of a span only behind its own beginning; else behind any class.
        candidates = np.where(scheme.possible, best[scheme.previous], -np.inf)
        choice = candidates.argmax(1)
        last = int(best.argmax())
        back.append(np.where(scheme.inside, scheme.previous[rows, choice], last))
        best = np.where(scheme.inside, candidates[rows, choice], best[last]) + row
    path = [int(best.argmax())]
    for previous in reversed(back):
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1])


def of_codes(
    codes: Sequence[int], classes: Sequence[str], scheme: Scheme | None
) -> list[Span]:
    """Return the spans of the classes of tokens, in order."""
    spans: list[Span] = []
    for step, code in enumerate(codes):
        prefix, label = scheme.parts[code] if scheme else ("", classes[code])
        if label in ("", OUTSIDE):
            continue
        begins = prefix == BEGIN or (prefix != "" and prefix in SINGLE)
        last = spans[-1] if spans else None
        if last and last.label == label and last.last == step - 1 and not begins:
            spans[-1] = last._replace(last=step)
        else:
            spans.append(Span(label, step, step))
    return spans


def to_labels(spans: object, tokens: Sequence[str], text: str | None) -> list[str]:
    """Return the BIO label of each token.

    Args:
        spans: a list of objects with `label`, and `start` and `end` in code points of the
            text, or the numbers of the `first` and the `last` token.
        text: that the tokens are of; None for tokens that were cut by others.

    Raises:
        ValueError: a span has other members, is not whole tokens, or overlaps another.
    """
    if not isinstance(spans, list):
        raise ValueError("spans are a list")
    labels = [OUTSIDE] * len(tokens)
    begins = [] if text is None else starts(text, tokens)
    for number, span in enumerate(spans):
        first, last = _tokens_of(span, tokens, begins, f"spans[{number}]")
        if any(label != OUTSIDE for label in labels[first : last + 1]):
            raise ValueError(f"spans[{number}] overlaps another")
        labels[first : last + 1] = [f"I-{span['label']}"] * (last + 1 - first)
        labels[first] = f"B-{span['label']}"
    return labels


def _tokens_of(
    span: Any, tokens: Sequence[str], begins: Sequence[int], name: str
) -> tuple[int, int]:
    """Return the numbers of the first and the last token of a span."""
    members = ("start", "end") if begins else ("first", "last")
    if not isinstance(span, dict) or not {"label", *members} <= {*span}:
        raise ValueError(f"{name} needs label, {members[0]} and {members[1]}")
    low, high = span[members[0]], span[members[1]]
    if not (span["label"] and isinstance(span["label"], str)):
        raise ValueError(f"{name}.label is not text")
    if type(low) is not int or type(high) is not int:
        raise ValueError(f"{name}: {members[0]} and {members[1]} are whole numbers")
    if not begins:
        if not 0 <= low <= high < len(tokens):
            raise ValueError(f"{name} is outside of the {len(tokens)} tokens")
        return low, high
    ends = {b + len(t): n for n, (b, t) in enumerate(zip(begins, tokens, strict=True))}
    places = {begin: number for number, begin in enumerate(begins)}
    if low not in places or high not in ends or ends[high] < places[low]:
        raise ValueError(f"{name} does not begin and end where tokens do")
    return places[low], ends[high]
