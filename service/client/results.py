"""The results and the errors of the clients, parsed from the service's answers.

An answer may come from any server, so it is checked against the documented shape.
Parsing raises nothing but `RequestError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

import msgspec
import numpy as np
import orjson

MAX_MESSAGE = 1_000  # characters of an error's text
MAX_DIGITS = 9  # of seconds to wait

T = TypeVar("T")
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class RequestError(Exception):
    """The service, or a proxy before it, refused a request.

    Attributes:
        status: HTTP status, or the status of an error in a stream.
        type: URN of the problem; "about:blank" if there is none.
        title: a few words.
        detail: a sentence; may be empty.
        errors: the invalid fields, each with its `path` and `message`.
        request_id: ID of the request in the service's log; may be empty.
        retry_after: seconds to wait before a retry; None if not given.
    """

    def __init__(
        self, status: int, problem: Any, headers: Mapping[str, str], title: str
    ):
        """
        Args:
            problem: the JSON body, if any. Members that are not as documented are
                ignored.
            title: used if the problem has none.
        """
        if not isinstance(problem, dict):
            problem = {}
        self.status = status
        self.type = _text(problem, "type") or "about:blank"
        self.title = _text(problem, "title") or title or "No reason given"
        self.detail = _text(problem, "detail") or _location(status, headers)
        self.errors = _errors(problem.get("errors"))
        request_id = _text(problem, "request_id")
        self.request_id = headers.get("x-request-id", request_id)
        self.retry_after = _seconds(headers.get("retry-after"))
        if self.retry_after is None:
            self.retry_after = _seconds(problem.get("retry_after"))
        details = [self.detail] if self.detail else []
        details += [f"{e['path']}: {e['message']}" for e in self.errors[:3]]
        parts = [f"{self.status} {self.title}", "; ".join(details)]
        super().__init__(_line(": ".join(filter(None, parts))))


class InvalidAnswer(RequestError):
    """The answer is not as documented; another server may have sent it.

    Its `status` is the HTTP status, such as 200, or 101 for a message in a stream.
    """

    def __init__(self, status: int, detail: str):
        problem = {"detail": detail}
        super().__init__(status, problem, {}, "Not an answer of the service")


def _text(problem: dict[str, Any], name: str) -> str:
    value = problem.get(name)
    return value if isinstance(value, str) else ""


def _location(status: int, headers: Mapping[str, str]) -> str:
    if 300 <= status < 400 and "location" in headers:
        return f"redirects to {headers['location']}, which is not followed"
    return ""


def _errors(value: Any) -> list[dict[str, str]]:
    items = value if isinstance(value, list) else []
    errors = [
        {"path": _text(item, "path"), "message": _text(item, "message")}
        for item in items
        if isinstance(item, dict)
    ]
    return [error for error in errors if error["path"] and error["message"]]


def _seconds(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) <= MAX_DIGITS:
        return int(value)
    # `type`, because a bool is an instance of int.
    return value if type(value) is int and 0 <= value < 10**MAX_DIGITS else None


def _line(text: str) -> str:
    """An untrusted text on one line, without control characters."""
    shown = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
    return "".join(c if c.isprintable() else " " for c in shown)


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
class Labelling:
    """The class of each step, with `probabilities` [T, C], or `top` if `top_k` was set."""

    labels: list[str]
    probabilities: Floats | None = None
    top: list[list[Choice]] | None = None
    steps: int | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        _check(self, 2)


@dataclass(frozen=True, slots=True)
class Classifications:
    """The answer of `classify`: one prediction per sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Classification]


@dataclass(frozen=True, slots=True)
class Labellings:
    """The answer of `label`: one prediction per sequence."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Labelling]


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
