"""The plain request, parsed several times faster than any other.

simdjson (Langdale and Lemire, *Parsing Gigabytes of JSON per Second*, VLDB Journal
2019) writes the numbers of a sequence straight into an array; no Python object is
made of any. Where anything is not exactly plain, this gives up, and `codec` finds
out what it is and says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import simdjson

from .settings import Settings

LARGE = 1e38
MEMBERS = frozenset({"sequences", "model", "top_k"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: sequences [T, F] float32, finite, none empty."""

    sequences: list[np.ndarray]
    model: str | None
    top_k: int | None


class Parser:
    """Parses bodies one after another, in one thread."""

    def __init__(self, settings: Settings):
        self._settings = settings
        # Kept: to find the memory for it anew costs more than the parsing.
        self._parser = simdjson.Parser()

    def read(self, body: bytes, lists: int) -> Asked | None:
        """What is asked, or None where that is not plain.

        Args:
            lists: how many `[` there are in the body.
        """
        if not body.startswith(b"{"):
            return None
        try:
            return _read(self._parser.parse(body), lists, self._settings)
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError):
            return None  # what simdjson and the arrays raise on anything unexpected


def lists(body: bytes) -> int:
    """How many `[` there are in a body."""
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord("[")))


def _read(members: Any, lists: int, settings: Settings) -> Asked | None:
    names = list(members)
    if len(names) != len(set(names)) or not MEMBERS.issuperset(names):
        return None
    given = members["sequences"]
    if len(given) > settings.max_sequences:
        return None
    widths = [list(map(len, sequence)) for sequence in given]
    steps = [len(sequence) for sequence in widths]
    features = widths[0][0] if widths and widths[0] else 0
    if (
        # Exactly these lists, so none within a frame, which would be flattened.
        lists != 1 + len(steps) + sum(steps)
        or not features
        or not min(steps)
        or any(sequence.count(features) != len(sequence) for sequence in widths)
        or max(steps) > settings.max_steps
        or sum(steps) * features > settings.max_cells
    ):
        return None
    sequences = []
    for sequence, count in zip(given, steps, strict=True):
        numbers = np.frombuffer(sequence.as_buffer(of_type="d"), np.float64)
        if not np.abs(numbers).max() < LARGE:
            return None  # perhaps not finite in float32
        sequences.append(numbers.astype(np.float32).reshape(count, features))
    model, top_k = members.get("model"), members.get("top_k")
    if type(model) not in (str, type(None)) or type(top_k) not in (int, type(None)):
        return None
    if top_k is not None and top_k < 1:
        return None
    return Asked(sequences, model, top_k)
