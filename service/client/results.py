"""The service's answers as the client gives them.

What comes over a network may be from anybody: it is checked here against what is
documented, and nothing but a `RequestError` is raised of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

import msgspec
import numpy as np
import orjson

LONGEST = 1_000  # characters of an error's text
DIGITS = 9  # of seconds to wait

T = TypeVar("T")


class RequestError(Exception):
    """The service refused, or a proxy before it; its problem details as attributes.

    Attributes:
        status: HTTP's, or that of the error in a stream.
        type: "about:blank" where it has none.
        title: in a few words.
        detail: in a sentence; empty where it has none.
        errors: the fields at fault, each with its `path` and `message`.
        request_id: empty where it has none.
        retry_after: seconds to wait; None where it has none, or a date.
    """

    def __init__(
        self, status: int, problem: Any, headers: Mapping[str, str], title: str
    ):
        """
        Args:
            problem: the JSON that came, if it was any; what is not as documented in
                it counts as not there.
            title: where that has none.
        """
        if not isinstance(problem, dict):
            problem = {}
        self.status = status
        self.type = _text(problem, "type") or "about:blank"
        self.title = _text(problem, "title") or title or "No reason given"
        self.detail = _text(problem, "detail") or _leads(status, headers)
        self.errors = _errors(problem.get("errors"))
        own_id = _text(problem, "request_id")
        self.request_id = headers.get("x-request-id", own_id)
        wait = _seconds(headers.get("retry-after"))
        self.retry_after = (
            _seconds(problem.get("retry_after")) if wait is None else wait
        )
        told = [self.detail] if self.detail else []
        told += [f"{e['path']}: {e['message']}" for e in self.errors[:3]]
        heads = [f"{self.status} {self.title}"] + (["; ".join(told)] if told else [])
        super().__init__(_line(": ".join(heads)))


class InvalidAnswer(RequestError):
    """An answer that is not as documented: of another server, perhaps.

    Its `status` is HTTP's, such as 200; 101 of a message in a stream.
    """

    def __init__(self, status: int, detail: str):
        problem = {"detail": detail}
        super().__init__(status, problem, {}, "Not an answer of the service")


def _text(problem: dict[str, Any], name: str) -> str:
    value = problem.get(name)
    return value if isinstance(value, str) else ""


def _leads(status: int, headers: Mapping[str, str]) -> str:
    if 300 <= status < 400 and "location" in headers:
        return f"redirects to {headers['location']}, which is not followed"
    return ""


def _errors(given: Any) -> list[dict[str, str]]:
    named = [e for e in given if isinstance(e, dict)] if isinstance(given, list) else []
    both = [{"path": _text(e, "path"), "message": _text(e, "message")} for e in named]
    return [error for error in both if error["path"] and error["message"]]


def _seconds(given: Any) -> int | None:
    if isinstance(given, str) and given.isdecimal() and len(given) <= DIGITS:
        return int(given)
    # A bool is an int, too.
    return given if type(given) is int and 0 <= given < 10**DIGITS else None


def _line(text: str) -> str:
    """A text from outside on one line, without what would change a terminal."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if c.isprintable() else " " for c in shown)


@dataclass(frozen=True, slots=True)
class Choice:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """One sequence's class; `probabilities` [C], or `top` with `top_k`."""

    label: str
    probability: float
    probabilities: np.ndarray | None = None
    top: list[Choice] | None = None
    steps: int | None = None  # taken so far, where that was asked
    state: str | None = None  # token to go on from

    def __post_init__(self) -> None:
        _check(self, 1)


@dataclass(frozen=True, slots=True)
class Labelling:
    """Each step's class; `probabilities` [T, C], or `top` with `top_k`."""

    labels: list[str]
    probabilities: np.ndarray | None = None
    top: list[list[Choice]] | None = None
    steps: int | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        _check(self, 2)


@dataclass(frozen=True, slots=True)
class Classifications:
    """The answer of `classify`, one prediction a sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Classification]


@dataclass(frozen=True, slots=True)
class Labellings:
    """The answer of `label`, one prediction a sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Labelling]


class _Model(TypedDict):
    """What the command line needs of a model, of all that is said of it."""

    name: str
    task: str
    streamable: bool
    feature_count: int
    classes: list[str]


class _Models(TypedDict):
    models: list[_Model]


class _Ready(TypedDict):
    status: Literal["ready"]


class _NotReady(TypedDict):
    reasons: list[str]


def parsed(content: bytes | str, status: int) -> Any:
    """The JSON of an answer with that status.

    Raises:
        InvalidAnswer: it is none.
    """
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise InvalidAnswer(status, f"no JSON: {error}") from None


def typed(value: Any, kind: type[T], status: int) -> T:
    """What has been parsed, as what it is documented to be.

    Raises:
        InvalidAnswer: it is something else; says where.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_array)
    except msgspec.ValidationError as error:
        raise InvalidAnswer(status, str(error)) from None


def problem(content: bytes) -> Any:
    """The JSON of a refusal; None where it has none."""
    try:
        return orjson.loads(content)
    except ValueError:
        return None


def classifications(content: bytes, status: int) -> Classifications:
    """The answer of `POST /classify`; raises as `typed`."""
    return typed(parsed(content, status), Classifications, status)


def labellings(content: bytes, status: int) -> Labellings:
    """The answer of `POST /label`; raises as `typed`."""
    return typed(parsed(content, status), Labellings, status)


def models(content: bytes, status: int) -> list[dict[str, Any]]:
    """The answer of `GET /models`, with all that it says; raises as `typed`."""
    body = parsed(content, status)
    typed(body, _Models, status)
    listed: list[dict[str, Any]] = body["models"]
    return listed


def ready(content: bytes, status: int) -> None:
    """Raises as `typed` unless it is the answer of a `GET /readyz` that is ready."""
    typed(parsed(content, status), _Ready, status)


def reasons(content: bytes, status: int) -> list[str]:
    """Why `GET /readyz` says that it is not."""
    try:
        return typed(parsed(content, status), _NotReady, status)["reasons"]
    except InvalidAnswer:
        return ["not ready"]  # says a proxy


def _array(_: type, values: Any) -> np.ndarray:
    array = np.array(values)  # not float32 at once, which takes text and null, too
    if array.dtype.kind not in "iuf":
        raise ValueError("Expected numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _check(prediction: "Classification | Labelling", axes: int) -> None:
    if prediction.probabilities is None and prediction.top is None:
        raise ValueError("Expected `probabilities` or `top`")
    if prediction.probabilities is not None and prediction.probabilities.ndim != axes:
        raise ValueError(f"Expected `probabilities` with {axes} axes")
