"""The results of the clients, parsed from the service's answers.

An answer may come from any server, so it is checked against the documented shape.
Parsing raises nothing but `RequestError`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from service.client.errors import InvalidAnswer

T = TypeVar("T")
Table = dict[str, list[str] | list[str | None] | NDArray[np.generic]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The class of a sequence, with `probabilities` [C], or `top` if `top_k` was set."""

    label: str
    probability: float
    probabilities: Floats | None = None
    top: list[Choice] | None = None
    steps: int | None = None  # taken so far, if a state was requested
    state: str | None = None  # token to continue from

    def __post_init__(self) -> None:
        _check(self, 1)


@dataclass(frozen=True, slots=True)
class TextToken:
    """A word of a text, and its place in Unicode code points."""

    text: str
    start: int
    end: int
    known: bool  # it is in the model's vocabulary


@dataclass(frozen=True, slots=True)
class Labelling:
    """The class of each step, with `probabilities` [T, C], or `top` if `top_k` was set."""

    labels: list[str]
    probabilities: Floats | None = None
    top: list[list[Choice]] | None = None
    steps: int | None = None
    state: str | None = None
    tokens: list[TextToken] | None = None  # of a text

    def __post_init__(self) -> None:
        _check(self, 2)


@dataclass(frozen=True, slots=True)
class Classifications:
    """The answer of `classify`: one prediction per sequence.

    Attributes:
        ids: of the sequences; numbers from 1 if they have none.
    """

    model: str
    version: str
    classes: list[str]
    predictions: list[Classification]
    ids: list[str] = field(default_factory=list)
    _table: object = field(default=None, repr=False)

    def to_dict(self) -> Table:
        """The columns of a DataFrame, such as `pandas.DataFrame(answer.to_dict())`.

        A row for each sequence: its id, label, true label if the DataFrame has it, and
        the probability of each class.

        Raises:
            ValueError: there are no probabilities, since `top_k` was set.
        """
        scores = [prediction.probabilities for prediction in self.predictions]
        return _columns("classify", self.classes, self.ids, scores, self._table)


@dataclass(frozen=True, slots=True)
class Labellings:
    """The answer of `label`: one prediction per sequence.

    Attributes:
        ids: of the sequences; numbers from 1 if they have none.
    """

    model: str
    version: str
    classes: list[str]
    predictions: list[Labelling]
    ids: list[str] = field(default_factory=list)
    _table: object = field(default=None, repr=False)

    def to_dict(self) -> Table:
        """The columns of a DataFrame, such as `pandas.DataFrame(answer.to_dict())`.

        A row for each step: its sequence and step, label, true label if the DataFrame has
        it, and the probability of each class.

        Raises:
            ValueError: there are no probabilities, since `top_k` was set.
        """
        scores = [prediction.probabilities for prediction in self.predictions]
        return _columns("label", self.classes, self.ids, scores, self._table)


def _columns(
    task: Literal["classify", "label"],
    classes: list[str],
    ids: list[str],
    scores: list[Floats | None],
    table: object,
) -> Table:
    from model.datasets import answers
    from model.datasets.readers import Sequences

    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        raise ValueError("no probabilities: call without top_k")
    if isinstance(table, Sequences):
        return answers.of_sequences(table, task, classes, known)
    return answers.columns(task, classes, ids, known)


class Ready(TypedDict):
    """The answer of `GET /readyz` when ready."""

    status: Literal["ready"]


class NotReady(TypedDict):
    """The answer of `GET /readyz` when not ready."""

    reasons: list[str]


def parse_json(content: bytes | str, status: int) -> Any:
    """Parse the JSON body of an answer with this status.

    Raises:
        InvalidAnswer: not JSON.
    """
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise InvalidAnswer(status, f"invalid JSON: {error}") from None


def convert(value: Any, kind: type[T], status: int) -> T:
    """Convert parsed JSON to its documented type.

    Raises:
        InvalidAnswer: it does not fit; the message says where.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidAnswer(status, str(error)) from None


def problem(content: bytes) -> Any:
    """Parse the JSON body of an error response; None if it is not JSON."""
    try:
        return orjson.loads(content)
    except ValueError:
        return None


def _decode(kind: Any, value: Any) -> Any:
    """Convert a value to a type that msgspec doesn't know: an array, or any object."""
    if kind is object:
        return value
    array = np.array(value)  # as float32 it would accept text and null
    if array.dtype.kind not in "iuf":
        raise ValueError("Expected numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _check(prediction: "Classification | Labelling", axes: int) -> None:
    if prediction.probabilities is None and prediction.top is None:
        raise ValueError("Expected `probabilities` or `top`")
    if prediction.probabilities is not None and prediction.probabilities.ndim != axes:
        raise ValueError(f"Expected `probabilities` with {axes} axes")
