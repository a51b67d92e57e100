"""The bodies of the clients' requests: sequences as JSON."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from service.client.models import Limits, ModelDetails
from service.client.tables import Data, Names, is_dataframe, read

if TYPE_CHECKING:
    from model.datasets.readers import Sequences

# Steps in a part of a larger call. A few parts then fit in the service's queue together
# (200,000 steps), and none takes as long as its deadline.
PART_STEPS = 25_000
# The field of a request that takes what a model reads.
FIELDS = {"characters": "texts", "tokens": "tokens", "records": "records"}
ENVELOPE_BYTES = 256  # of a body besides the sequences and tokens, at most


@dataclass(frozen=True, slots=True)
class Part:
    """The sequences of a call that are sent as one request.

    Attributes:
        begin: index of the first sequence.
        texts: the sequences, as JSON.
    """

    begin: int
    texts: list[bytes]

    @property
    def end(self) -> int:
        return self.begin + len(self.texts)

    def halves(self) -> "list[Part]":
        """The part in two, if it has several sequences."""
        middle = len(self.texts) // 2
        return [
            Part(self.begin, self.texts[:middle]),
            Part(self.begin + middle, self.texts[middle:]),
        ]


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call of `classify` or `label`; `data` is collected."""

    data: Data
    names: Names
    model: str | None
    top_k: int | None
    states: Sequence[str | None] | None
    return_state: bool
    progress: Callable[[int, int], None] | None


def prepare(arguments: Arguments, model: ModelDetails | None) -> "Request":
    """The request of a call.

    Args:
        model: whose features a DataFrame's columns are; None for arrays.

    Raises:
        ValueError: a sequence is no array of numbers, or a column of a DataFrame is
            missing; names it.
    """
    states = arguments.states
    table, name = None, arguments.model
    kind = _kind(arguments.data)
    if model is None:
        sequences: list[Any] = _arrays(arguments, kind)
        ids = list(map(str, range(1, len(sequences) + 1)))
    else:
        table = read(arguments.data, arguments.names, model)
        sequences, ids = table.inputs, list(table.ids)
        kind = FIELDS.get(model.input, "sequences")
        name = (
            f"{model.name}@{model.version}"  # another version may order them otherwise
        )
    return Request(
        sequences,
        name,
        arguments.top_k,
        None if states is None else list(states),
        arguments.return_state,
        requested=arguments.model,
        ids=ids,
        table=table,
        kind=kind,
    )


def _kind(data: Data) -> str:
    """The field of a request that takes the data: `texts` for strings, `tokens` for lists
    of strings, `records` for lists of objects, else `sequences`."""
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, str):
        return "texts"
    if isinstance(first, Sequence) and first and isinstance(first[0], str):
        return "tokens"
    if isinstance(first, Sequence) and first and isinstance(first[0], Mapping):
        return "records"
    return "sequences"


def _arrays(arguments: Arguments, kind: str) -> list[Any]:
    if arguments.names != Names(None, None, None, ()):
        raise ValueError("by, step, label and ignore name columns of a DataFrame")
    assert isinstance(arguments.data, list)
    if kind != "sequences":
        return arguments.data
    arrays = []
    for index, frames in enumerate(arguments.data):
        if is_dataframe(frames):  # NumPy would take its columns by their places
            reason = "join DataFrames into one, with a column of ids (by=...)"
            raise ValueError(f"sequences[{index}] is a DataFrame: {reason}")
        try:
            arrays.append(np.ascontiguousarray(frames, np.float32))
        except ValueError as error:
            raise ValueError(f"sequences[{index}]: {error}") from None
    return arrays


@dataclass(frozen=True, slots=True)
class Request:
    """A request for predictions, of any size.

    Attributes:
        sequences: each [T, F] float32; or a text, or a list of words or of records.
        model: that the sequences are made for.
        requested: the model that the caller chose.
        ids: of the sequences.
        table: their DataFrame, if they come from one.
        kind: the field that they are sent in.
    """

    sequences: list[Any]
    model: str | None
    top_k: int | None
    states: list[str | None] | None
    return_state: bool
    requested: str | None
    ids: list[str]
    table: "Sequences | None"
    kind: str = "sequences"

    def encode(self, part: Part, model: str | None) -> bytes:
        """The body of the request for a part, with this model."""
        members: dict[str, object] = {}
        if model is not None:
            members["model"] = model
        if self.top_k is not None:
            members["top_k"] = self.top_k
        if self.states is not None:
            whole = len(part.texts) == len(self.sequences)
            states = self.states if whole else self.states[part.begin : part.end]
            members["states"] = states
        if self.return_state:
            members["return_state"] = True
        rest = orjson.dumps(members)[1:]
        comma = b"," if members else b""
        start = b'{"%s":[' % self.kind.encode()
        return start + b",".join(part.texts) + b"]" + comma + rest

    def cut(self, limits: Limits) -> Iterator[Part]:
        """Cut into parts that are as large as the limits allow, at least one sequence
        each; at least one part."""
        begin, texts = 0, list[bytes]()
        states = self.states
        if states is None or len(states) != len(self.sequences):
            states = [None] * len(self.sequences)
        steps = numbers = size = 0
        for index, frames in enumerate(self.sequences):
            # The network computes in float32, which has half the digits of float64.
            text = orjson.dumps(frames, option=orjson.OPT_SERIALIZE_NUMPY)
            length = len(text) + len(states[index] or "null") + 4
            count = _numbers(frames)
            if texts and (
                len(texts) >= limits.sequences
                or steps + len(frames) > PART_STEPS
                or numbers + count > limits.numbers
                or size + length > limits.body_bytes - ENVELOPE_BYTES
            ):
                yield Part(begin, texts)
                begin, texts = index, []
                steps = numbers = size = 0
            texts.append(text)
            steps += len(frames)
            numbers += count
            size += length
        yield Part(begin, texts)


def _numbers(sequence: Any) -> int:
    """How many numbers a sequence has for a limit, as far as the client knows."""
    if isinstance(sequence, np.ndarray):
        return sequence.size
    if isinstance(sequence, list) and sequence and isinstance(sequence[0], Mapping):
        return len(sequence) * len(sequence[0])
    return 0
