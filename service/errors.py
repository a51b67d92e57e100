"""What a caller can be refused with, as RFC 9457 problem details.

ServiceError
├── InvalidJson        400  the body is no JSON
├── BadEncoding        400  the body is not compressed as its header says
├── BadHandshake       400  not that of a WebSocket
├── InvalidHeader      400  a header that can't be understood
├── MalformedHttp      400  no request of HTTP/1.1
├── Unauthorized       401  no key, or a wrong one
├── Forbidden          403  not allowed by the settings
├── UnknownModel       404  no such model
├── NotFound           404  no such path
├── MethodNotAllowed   405  the path has another method
├── RequestTimeout     408  it did not come in time
├── StateConflict      409  a state of another model, version or bundle
├── TooLarge           413  over a limit of the service
├── UnsupportedMedia   415  not JSON, or compressed in another way
├── InvalidRequest     422  JSON, but not what the model takes
├── InvalidState       422  no state token of this service's, or a changed one
├── NotStreamable      422  the network reads its sequences in both directions
├── RateLimited        429  of one key, in so short a time
├── HeadTooLarge       431  a head over a limit
├── InternalError      500  our mistake; the log has it under the request's id
├── NotReady           503  still loading, or the model could not be loaded
├── Overloaded         503  too much waits already
├── BufferFull         503  too many bytes are held for requests
├── TooManyConnections 503  as many are open as may be
├── TooManyStreams     503  as many are open as may be
├── Stopping           503  told to stop
└── DeadlineExceeded   504  no answer in the time that the caller gave
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

MAX_ERRORS = 20
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field; `path` as in `sequences[0][3][1]`."""

    path: str
    message: str


class ServiceError(Exception):
    """A refusal that the caller is told."""

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
        """The problem details; never more than `MAX_ERRORS` errors, no input."""
        problem: dict[str, Any] = {
            "type": f"urn:unrolled:error:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if "Retry-After" in self.headers:  # in a stream there are no headers
            problem["retry_after"] = int(self.headers["Retry-After"])
        if self.errors:
            problem["errors"] = self.errors[:MAX_ERRORS]
            problem["error_count"] = self.error_count
        return orjson.dumps(problem)


class InvalidJson(ServiceError):
    status, slug, title = 400, "invalid-json", "The body is not valid JSON"


class BadEncoding(ServiceError):
    status, slug, title = 400, "bad-encoding", "The body can't be inflated"


class BadHandshake(ServiceError):
    status, slug, title = 400, "bad-handshake", "The WebSocket can't be opened"


class InvalidHeader(ServiceError):
    status, slug, title = 400, "invalid-header", "A header can't be understood"


class MalformedHttp(ServiceError):
    status, slug, title = 400, "malformed-http", "The request is no HTTP/1.1"


class Unauthorized(ServiceError):
    status, slug, title = 401, "unauthorized", "A key is needed"


class Forbidden(ServiceError):
    status, slug, title = 403, "forbidden", "Not allowed here"


class UnknownModel(ServiceError):
    status, slug, title = 404, "unknown-model", "No such model"


class NotFound(ServiceError):
    status, slug, title = 404, "not-found", "No such path"


class MethodNotAllowed(ServiceError):
    status, slug, title = 405, "method-not-allowed", "Another method is needed"


class RequestTimeout(ServiceError):
    status, slug, title = 408, "request-timeout", "The request did not come in time"


class StateConflict(ServiceError):
    status, slug, title = 409, "state-conflict", "The state is of another network"


class TooLarge(ServiceError):
    status, slug, title = 413, "too-large", "The request is over a limit"


class UnsupportedMedia(ServiceError):
    status, slug, title = 415, "unsupported-media-type", "Send plain JSON"


class InvalidRequest(ServiceError):
    status, slug, title = 422, "invalid-request", "The request does not fit the model"


class InvalidState(ServiceError):
    status, slug, title = 422, "invalid-state", "The state can't be used"


class NotStreamable(ServiceError):
    status, slug, title = 422, "not-streamable", "The model needs its sequences whole"


class RateLimited(ServiceError):
    status, slug, title = 429, "rate-limited", "Too many requests of this key"


class HeadTooLarge(ServiceError):
    status, slug, title = 431, "head-too-large", "The request's head is too large"


class InternalError(ServiceError):
    pass


class NotReady(ServiceError):
    status, slug, title = 503, "not-ready", "Not ready yet"


class Overloaded(ServiceError):
    status, slug, title = 503, "overloaded", "Too much work is waiting"


class BufferFull(ServiceError):
    status, slug, title = 503, "buffer-full", "Too many bytes are held"


class TooManyConnections(ServiceError):
    status, slug, title = 503, "too-many-connections", "Too many connections"


class TooManyStreams(ServiceError):
    status, slug, title = 503, "too-many-streams", "Too many streams are open"


class Stopping(ServiceError):
    status, slug, title = 503, "stopping", "The service is stopping"


class DeadlineExceeded(ServiceError):
    status, slug, title = 504, "deadline-exceeded", "Not answered in time"
