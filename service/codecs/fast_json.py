"""The plain request, parsed several times faster than any other.

simdjson (Langdale and Lemire, *Parsing Gigabytes of JSON per Second*, VLDB Journal
2019) writes the numbers of a sequence straight into an array; no Python object is
made of any. Where anything is not exactly plain, this gives up, and `codec` finds
out what it is and says so.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import simdjson

from service.errors import TooLarge
from service.settings import Limits, Settings

NAMED = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')
LARGE = 1e38
MEMBERS = frozenset({"sequences", "model", "top_k", "states", "return_state"})


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A request: sequences [T, F] float32, finite, none empty."""

    sequences: list[np.ndarray]
    model: str | None
    top_k: int | None
    states: list[str | None] | None = None  # as many as sequences
    return_state: bool = False


class Parser:
    """Parses bodies one after another, in one thread."""

    def __init__(self, settings: Settings):
        self._settings = settings
        # Kept: to find the memory for it anew costs more than the parsing.
        self._parser = simdjson.Parser()

    def read(self, body: bytes, lists: int) -> PredictRequest | None:
        """What is asked, or None where that is not plain.

        Args:
            lists: how many `[` there are in the body.
        """
        if not body.startswith(b"{"):
            return None
        try:
            return _read(self._parser.parse(body), lists, self._settings)
        except _UNEXPECTED:
            return None

    def rows(self, body: bytes, lists: int) -> tuple[str, list[np.ndarray]] | None:
        """The only member of a body and the sequences in it, or None where it isn't
        plain."""
        if not body.startswith(b"{"):
            return None
        try:
            members: Any = self._parser.parse(body)
            (name,) = members
            sequences = _sequences(members[name], lists - 1, self._settings)
            return None if sequences is None else (name, sequences)
        except _UNEXPECTED:
            return None

    def frames(self, message: bytes) -> tuple[np.ndarray, bool] | None:
        """The frames of a stream's message, and whether the new state is wanted; None
        where it isn't plain, or has anything else."""
        if not message.startswith(b"{"):
            return None
        try:
            members: Any = self._parser.parse(message)
            given, wanted = members["frames"], False
            if len(members) > 1:
                wanted = members["return_state"]
                if len(members) > 2 or type(wanted) is not bool:
                    return None
            widths = list(map(len, given))
            if message.count(b"[") != 1 + len(widths):
                return None
            if not _fits([widths], self._settings):
                return None
            frames = _array(given, widths)
            return None if frames is None else (frames, wanted)
        except _UNEXPECTED:
            return None


# What simdjson and the arrays raise on anything unexpected.
_UNEXPECTED = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)


def lists(body: bytes) -> int:
    """How many `[` there are in a body."""
    return _count(body, b"[")


def peek_model_name(body: bytes) -> str | None:
    """The model that a body names, as far as can be told without parsing it; None: it
    names none; empty: who knows."""
    at = body.rfind(b'"model"')
    if at < 0:
        return None
    found = NAMED.match(body, at)
    return found[1].decode("latin-1") if found else ""


def check_size(
    body: bytes, lists: int, fewest: int, limits: Limits, others: int = 0
) -> None:
    """Refuse what must be over a limit before it is parsed into objects.

    Args:
        lists: how many `[` there are: those without numbers cost a parser most.
        fewest: features of a step, at least.
        others: commas that may be there besides, for each sequence.

    Raises:
        TooLarge: it holds more than it may.
    """
    most, sequences = limits.max_cells, limits.max_sequences
    each = 2 if others else 1  # a row of others may have a list besides
    if lists > 2 + each * sequences + most // fewest:
        raise TooLarge(f"more steps than could hold at most {most} numbers")
    # A list of numbers has a comma less than numbers; lists have commas between them.
    after = body.count(b"],")
    slack = sequences * (2 + others) + len(MEMBERS)
    between = after + slack if after + slack >= lists else lists  # "] ," is JSON too
    if _count(body, b",") - between + lists - slack > most:
        raise TooLarge(f"at most {most} numbers in a request")


def _count(body: bytes, sign: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord(sign)))


def _read(members: Any, lists: int, settings: Settings) -> PredictRequest | None:
    names = list(members)
    if len(names) != len(set(names)) or not MEMBERS.issuperset(names):
        return None
    given = members["sequences"]
    if len(given) > settings.max_sequences:
        return None
    states = members.get("states")
    others = 1 if states is None else 2
    sequences = _sequences(given, lists - others, settings)
    if sequences is None:
        return None
    if states is not None:
        states = states.as_list()
        if len(states) != len(sequences) or not _TOKENS.issuperset(map(type, states)):
            return None
    model, top_k = members.get("model"), members.get("top_k")
    if type(model) not in (str, type(None)) or type(top_k) not in (int, type(None)):
        return None
    if top_k is not None and top_k < 1:
        return None
    wanted = members.get("return_state", False)
    if type(wanted) is not bool:
        return None
    return PredictRequest(sequences, model, top_k, states, wanted)


_TOKENS = frozenset({str, type(None)})


def _sequences(given: Any, lists: int, settings: Settings) -> list[np.ndarray] | None:
    """The sequences, or None where something is wrong with one.

    Args:
        lists: how many there are, of sequences and of frames.
    """
    widths = [list(map(len, sequence)) for sequence in given]
    # Exactly these lists, so none within a frame, which would be flattened.
    if lists != len(widths) + sum(map(len, widths)) or not _fits(widths, settings):
        return None
    sequences = []
    for sequence, lengths in zip(given, widths, strict=True):
        frames = _array(sequence, lengths)
        if frames is None:
            return None
        sequences.append(frames)
    return sequences


def _fits(widths: list[list[int]], settings: Settings) -> bool:
    """That sequences whose frames have so many numbers are of one width and within
    the limits."""
    features = widths[0][0] if widths and widths[0] else 0
    if not features:
        return False
    cells = 0
    for lengths in widths:
        steps = len(lengths)
        if not 0 < steps <= settings.max_steps or lengths.count(features) != steps:
            return False
        cells += steps * features
    return cells <= settings.max_cells


def _array(frames: Any, widths: list[int]) -> np.ndarray | None:
    """[T, F] float32, or None where a number is perhaps not finite in it."""
    numbers = np.frombuffer(frames.as_buffer(of_type="d"), np.float64)
    if not np.maximum.reduce(np.abs(numbers)) < LARGE:
        return None
    return numbers.astype(np.float32).reshape(len(widths), widths[0])
