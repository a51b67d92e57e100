"""A fast parser for plain requests, several times faster than `native`'s.

simdjson (Langdale and Lemire, *Parsing Gigabytes of JSON per Second*, VLDB Journal
2019) writes the numbers of a sequence straight into an array, without making Python
objects of them. If anything is unusual, this parser returns None; the strict parsers
(`native`, `stream_messages`, `tf_serving`) then decode the body or say what is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simdjson

from model.bundle.vocabulary import Kind
from service.errors import TooLarge
from service.settings import Limits

MODEL_FIELD = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')
INPUT_FIELD = re.compile(rb'"(sequences|texts|tokens|records)"\s*:\s*\Z')
READS = {
    **{b"sequences": "frames", b"records": "records"},
    **{b"texts": "text", b"tokens": "text"},
}
LARGEST = 1e38  # a larger number may not be finite in float32
FIELDS = frozenset({"sequences", "model", "top_k", "states", "return_state"})
_TOKEN_TYPES = frozenset({str, type(None)})
# What simdjson and NumPy raise on unexpected input.
_UNEXPECTED = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A decoded `POST /classify` or `POST /label`."""

    sequences: list[np.ndarray]  # [T, F] float32, finite, none empty
    model: str | None
    top_k: int | None
    states: list[str | None] | None = None  # as many as sequences
    return_state: bool = False
    # In place of sequences, for a network that reads text:
    tokens: list[Sequence[str]] | None = None
    texts: list[str] | None = None  # that the tokens are of
    spans: bool = False
    # Or for a network that reads records:
    records: list[list[dict[str, Any]]] | None = None

    @property
    def reads(self) -> str:
        """The input of the models that can answer: frames, text, or records."""
        if self.records is not None:
            return "records"
        return "frames" if self.tokens is None else "text"


class Inputs(NamedTuple):
    """The inputs of a task's models, by reference; those of the default model under None."""

    features: Mapping[str | None, int]  # of a frame
    text: Mapping[str | None, tuple[Kind, int]]  # and the columns of ids
    # The kind of each column, by its name.
    records: Mapping[str | None, Mapping[str, str]] = {}


class FastParser:
    """Parses one body after another, in one thread."""

    def __init__(self, limits: Limits):
        self._limits = limits
        # Reused: allocating its memory again costs more than parsing.
        self._parser = simdjson.Parser()

    def parse_request(self, body: bytes, lists: int) -> PredictRequest | None:
        """Parse the body of `/classify` or `/label`; None if it isn't plain.

        Args:
            lists: the number of `[` in the body.
        """
        if not body.startswith(b"{"):
            return None
        try:
            return self._request(self._parser.parse(body), lists)
        except _UNEXPECTED:
            return None

    def parse_instances(
        self, body: bytes, lists: int
    ) -> tuple[str, list[np.ndarray]] | None:
        """Parse a body whose only field holds sequences; None if it isn't plain.

        Returns:
            The field's name, and the sequences.
        """
        if not body.startswith(b"{"):
            return None
        try:
            fields: Any = self._parser.parse(body)
            (name,) = fields
            sequences = self._sequences(fields[name], lists - 1)
            return None if sequences is None else (name, sequences)
        except _UNEXPECTED:
            return None

    def parse_message(self, message: bytes) -> tuple[np.ndarray, bool] | None:
        """Parse a stream's message: its frames, and `return_state`; None if it isn't
        plain, or has other fields."""
        if not message.startswith(b"{"):
            return None
        try:
            fields: Any = self._parser.parse(message)
            rows, return_state = fields["frames"], False
            if len(fields) > 1:
                return_state = fields["return_state"]
                if len(fields) > 2 or type(return_state) is not bool:
                    return None
            widths = list(map(len, rows))
            if message.count(b"[") != 1 + len(widths) or not self._fits([widths]):
                return None
            frames = _to_array(rows, widths)
            return None if frames is None else (frames, return_state)
        except _UNEXPECTED:
            return None

    def _request(self, fields: Any, lists: int) -> PredictRequest | None:
        names = list(fields)
        if len(names) != len(set(names)) or not FIELDS.issuperset(names):
            return None
        rows = fields["sequences"]
        if len(rows) > self._limits.max_sequences:
            return None
        states = fields.get("states")
        sequences = self._sequences(rows, lists - (1 if states is None else 2))
        if sequences is None:
            return None
        if states is not None:
            states = states.as_list()
            if len(states) != len(sequences):
                return None
            if not _TOKEN_TYPES.issuperset(map(type, states)):
                return None
        model, top_k = fields.get("model"), fields.get("top_k")
        if type(model) not in (str, type(None)) or type(top_k) not in (int, type(None)):
            return None
        if top_k is not None and top_k < 1:
            return None
        return_state = fields.get("return_state", False)
        if type(return_state) is not bool:
            return None
        return PredictRequest(sequences, model, top_k, states, return_state)

    def _sequences(self, rows: Any, lists: int) -> list[np.ndarray] | None:
        """The sequences, or None if one is invalid.

        Args:
            lists: the number of lists expected: of sequences and of frames.
        """
        widths = [list(map(len, sequence)) for sequence in rows]
        # No more lists than these: simdjson would flatten a list within a frame.
        if lists != len(widths) + sum(map(len, widths)) or not self._fits(widths):
            return None
        arrays = [_to_array(*pair) for pair in zip(rows, widths, strict=True)]
        if any(array is None for array in arrays):
            return None
        return arrays  # type: ignore[return-value]

    def _fits(self, widths: list[list[int]]) -> bool:
        """Check that frames of these widths, by sequence, have one width and are
        within the limits."""
        features = widths[0][0] if widths and widths[0] else 0
        if not features:
            return False
        numbers = 0
        for sequence in widths:
            steps = len(sequence)
            if not 0 < steps <= self._limits.max_steps:
                return False
            if sequence.count(features) != steps:
                return False
            numbers += steps * features
        return numbers <= self._limits.max_cells


def count_lists(body: bytes) -> int:
    """Count the `[` in a body."""
    return _count(body, b"[")


def peek(body: bytes) -> tuple[str | None, str]:
    """Return the model that a body names, and what it reads, without parsing it.

    They are certain in a valid body: only what is before its first list and after its
    last one counts, since texts and records may hold anything.

    Returns:
        The model's name, None if the body has none; and frames, text, or records. Either
        is empty if it can't be found without parsing.
    """
    first, last = body.find(b"["), body.rfind(b"]")
    head, tail = body[: max(first, 0)], body[last + 1 :]
    if b"\\" in head or b"\\" in tail:
        return "", ""
    field = INPUT_FIELD.search(head)
    reads = READS[field[1]] if field else ""
    names = MODEL_FIELD.findall(head + tail)
    if names:
        return names[-1].decode("latin-1"), reads
    return ("" if b'"model"' in head + tail else None), reads


def check_size(
    body: bytes, lists: int, min_features: int, limits: Limits, extra_commas: int = 0
) -> None:
    """Refuse a body that must exceed a limit, before it is parsed into objects.

    Args:
        lists: the number of `[`: a parser spends most on lists without numbers.
        min_features: features of a step, at least.
        extra_commas: allowed for each sequence, besides those of its numbers.

    Raises:
        TooLarge: the body holds more numbers, or steps, than allowed.
    """
    numbers, sequences = limits.max_cells, limits.max_sequences
    if len(body) < 2 * (numbers // min_features):  # a list or a number takes two bytes
        return
    lists_each = 2 if extra_commas else 1  # a row of other fields may have one more
    if lists > 2 + lists_each * sequences + numbers // min_features:
        raise TooLarge(
            f"a request may have at most {numbers} numbers; it has more steps"
        )
    # A list of numbers has one comma less than numbers; commas separate lists too.
    after = body.count(b"],")
    slack = sequences * (2 + extra_commas) + len(FIELDS)
    between = after + slack if after + slack >= lists else lists  # "] ," is JSON too
    if _count(body, b",") - between + lists - slack > numbers:
        raise TooLarge(f"a request may have at most {numbers} numbers")


def _count(body: bytes, character: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord(character)))


def _to_array(frames: Any, widths: list[int]) -> np.ndarray | None:
    """The array [T, F] float32, or None if a number may not be finite in it."""
    numbers = np.frombuffer(frames.as_buffer(of_type="d"), np.float64)
    if not np.maximum.reduce(np.abs(numbers)) < LARGEST:
        return None
    return numbers.astype(np.float32).reshape(len(widths), widths[0])
