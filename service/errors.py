"""Errors that are reported to the client, as RFC 9457 problem details.

ServiceError
├── InvalidJson        400  the body is not JSON
├── BadEncoding        400  the body is not compressed as its header says
├── BadHandshake       400  the WebSocket handshake is invalid
├── InvalidHeader      400  a header can't be parsed
├── MalformedHttp      400  the request is not HTTP/1.1
├── Unauthorized       401  the API key is missing or wrong
├── Forbidden          403  the settings don't allow it
├── UnknownModel       404  there is no such model
├── NotFound           404  there is no such path
├── MethodNotAllowed   405  the path has other methods
├── RequestTimeout     408  the request did not arrive in time
├── StateConflict      409  the state belongs to another model, version or bundle
├── TooLarge           413  the request exceeds a limit
├── UnsupportedMedia   415  the body is not JSON, or has another compression
├── InvalidRequest     422  the JSON does not fit the model
├── InvalidState       422  the state token is not this service's, or was changed
├── NotStreamable      422  the network is bidirectional
├── RateLimited        429  the key exceeds its rate limit
├── HeadTooLarge       431  the request head exceeds a limit
├── InternalError      500  a bug; the log has it under the request's id
├── NotReady           503  the models are loading, or the model is broken
├── Overloaded         503  too many steps are waiting
├── BufferFull         503  too many bytes are held for requests
├── TooManyConnections 503  the connection limit is reached
├── TooManyStreams     503  the stream limit is reached
├── Stopping           503  the service is shutting down
└── DeadlineExceeded   504  the deadline passed before the response was ready
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import orjson

MAX_ERRORS = 20
MAX_NAMES = 20  # in a list of names
MAX_NAME, MAX_KNOWN = 64, 50  # characters and names that are compared: about 1 ms
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error in one field; its `path` is like `sequences[0][3][1]`."""

    path: str
    message: str


def list_names(names: Iterable[str]) -> str:
    """Up to `MAX_NAMES` names, and how many more there are."""
    rest = iter(names)
    text = ", ".join(islice(rest, MAX_NAMES)) or "none"
    more = sum(1 for _ in rest)
    return f"{text}, and {more} more" if more else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the known name that is most
    like it, if one is. The message does not repeat the name itself."""
    names = {text.lower(): text for text in islice(known, MAX_KNOWN)}
    close = difflib.get_close_matches(name[:MAX_NAME].lower(), names, 1)
    return f"; did you mean {names[close[0]]}?" if close else ""


class ServiceError(Exception):
    """An error that is reported to the client."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
        error_count: int | None = None,
    ):
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}
        self.error_count = error_count or len(self.errors)

    def body(self, request_id: str) -> bytes:
        """The JSON of the problem details. It has at most `MAX_ERRORS` field errors, and
        repeats nothing of the client's input."""
        problem: dict[str, Any] = {
            "type": f"urn:unrolled:error:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if "Retry-After" in self.headers:  # a stream's messages have no headers
            problem["retry_after"] = int(self.headers["Retry-After"])
        if self.errors:
            problem["errors"] = self.errors[:MAX_ERRORS]
            problem["error_count"] = self.error_count
        return orjson.dumps(problem)


class InvalidJson(ServiceError):
    status, slug, title = 400, "invalid-json", "The body is not valid JSON"


class BadEncoding(ServiceError):
    status, slug, title = 400, "bad-encoding", "The body can't be decompressed"


class BadHandshake(ServiceError):
    status, slug, title = 400, "bad-handshake", "The WebSocket handshake failed"


class InvalidHeader(ServiceError):
    status, slug, title = 400, "invalid-header", "A header is invalid"


class MalformedHttp(ServiceError):
    status, slug, title = 400, "malformed-http", "The request is not valid HTTP/1.1"


class Unauthorized(ServiceError):
    status, slug, title = 401, "unauthorized", "An API key is required"


class Forbidden(ServiceError):
    status, slug, title = 403, "forbidden", "Not allowed"


class UnknownModel(ServiceError):
    status, slug, title = 404, "unknown-model", "No such model"


class NotFound(ServiceError):
    status, slug, title = 404, "not-found", "No such path"


class MethodNotAllowed(ServiceError):
    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class RequestTimeout(ServiceError):
    status, slug, title = 408, "request-timeout", "The request did not arrive in time"


class StateConflict(ServiceError):
    status, slug, title = 409, "state-conflict", "The state belongs to another model"


class VersionGone(ServiceError):
    status, slug, title = 410, "version-gone", "The version is no longer served"


class TooLarge(ServiceError):
    status, slug, title = 413, "too-large", "The request exceeds a limit"


class UnsupportedMedia(ServiceError):
    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class InvalidRequest(ServiceError):
    status, slug, title = 422, "invalid-request", "The request does not fit the model"


class WrongFeatureCount(InvalidRequest):
    """Every step of a request has the same number of features, but not the model's."""

    features = 0  # of each step
    reference: str | None = None  # the model, as the request names it


class InvalidState(ServiceError):
    status, slug, title = 422, "invalid-state", "The state token is invalid"


class NotStreamable(ServiceError):
    status, slug, title = 422, "not-streamable", "The model can't be streamed"


class RateLimited(ServiceError):
    status, slug, title = 429, "rate-limited", "Too many requests with this key"


class HeadTooLarge(ServiceError):
    status, slug, title = 431, "head-too-large", "The request head is too large"


class InternalError(ServiceError):
    pass


class NotReady(ServiceError):
    status, slug, title = 503, "not-ready", "Not ready"


class Overloaded(ServiceError):
    status, slug, title = 503, "overloaded", "The service is overloaded"


class BufferFull(ServiceError):
    status, slug, title = 503, "buffer-full", "Too many bytes are buffered"


class TooManyConnections(ServiceError):
    status, slug, title = 503, "too-many-connections", "Too many connections"


class TooManyStreams(ServiceError):
    status, slug, title = 503, "too-many-streams", "Too many streams"


class Stopping(ServiceError):
    status, slug, title = 503, "stopping", "The service is shutting down"


class DeadlineExceeded(ServiceError):
    status, slug, title = 504, "deadline-exceeded", "The deadline was exceeded"
