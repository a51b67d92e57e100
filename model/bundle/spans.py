"""Spans of labelled tokens: BIO, BIOES and BILOU labels, made consistent by Viterbi.

`B-PER I-PER O` is a span of the type PER over the first two tokens. Labels without such
prefixes make a span of neighbours with the same label; a label O makes none.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# The first letters of labels that say where in a span a token stands.
BEGIN, INSIDE, END, SINGLE = "B", "I", "EL", "SU"
OUTSIDE = "O"
Scheme = Mapping[int, tuple[str, str]]  # the prefix and the type of each class


class Span(NamedTuple):
    """A span, by the numbers of its first and last token."""

    label: str
    first: int
    last: int


def tagging_scheme(classes: Sequence[str]) -> Scheme | None:
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


def most_probable(probabilities: np.ndarray, scheme: Scheme | None) -> np.ndarray:
    """Return the class of each token [T]: the most probable one or, with a scheme, that of
    the most probable path of classes of which each may follow the one before.

    Args:
        probabilities: [T, C].
    """
    if scheme is None:
        return probabilities.argmax(1)
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


def of_codes(
    codes: Sequence[int], classes: Sequence[str], scheme: Scheme | None
) -> list[Span]:
    """Return the spans of the classes of tokens, in order."""
    spans: list[Span] = []
    for step, code in enumerate(codes):
        prefix, label = scheme[code] if scheme else ("", classes[code])
        if label in ("", OUTSIDE):
            continue
        begins = prefix == BEGIN or (prefix != "" and prefix in SINGLE)
        last = spans[-1] if spans else None
        if last and last.label == label and last.last == step - 1 and not begins:
            spans[-1] = last._replace(last=step)
        else:
            spans.append(Span(label, step, step))
    return spans
