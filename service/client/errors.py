"""The exceptions of the clients.

ClientError
├── RequestError        the service, or a proxy before it, refused the request
│   └── InvalidAnswer   the response is not the service's
└── ConnectionLost      no answer: nobody listens, the connection broke, TLS, a timeout
    └── StreamLost      a stream's connection, without a token to continue from
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from socket import gaierror
from ssl import SSLCertVerificationError, SSLError

import httpx
from websockets.exceptions import InvalidMessage, WebSocketException

MAX_MESSAGE = 1_000  # characters of an error's text
MAX_DIGITS = 9  # of seconds to wait
CONNECTION_ERRORS = (WebSocketException, EOFError, OSError)  # of WebSockets


class ClientError(Exception):
    """A call of the client failed.

    Attributes:
        address: of the service, without credentials.
    """

    address = ""

    def __str__(self) -> str:
        message = self._message()
        return f"{self.address}: {message}" if self.address else message

    def _message(self) -> str:
        return super().__str__()

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return _restore, (type(self), self.args, vars(self))  # to another process


def _restore(
    kind: type[ClientError], args: tuple[object, ...], members: dict[str, object]
) -> ClientError:
    error = kind.__new__(kind, *args)
    vars(error).update(members)
    return error


class RequestError(ClientError):
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
        self, status: int, problem: object, headers: Mapping[str, str], title: str
    ):
        """
        Args:
            problem: the JSON body, if any. Members that are not as documented are
                ignored.
            title: used if the problem has none.
        """
        members = problem if isinstance(problem, dict) else {}
        self.status = status
        self.type = _text(members, "type") or "about:blank"
        self.title = _text(members, "title") or title or "No reason given"
        self.detail = _text(members, "detail") or _location(status, headers)
        self.errors = _errors(members.get("errors"))
        request_id = _text(members, "request_id")
        self.request_id = headers.get("x-request-id", request_id)
        self.retry_after = _seconds(headers.get("retry-after"))
        if self.retry_after is None:
            self.retry_after = _seconds(members.get("retry_after"))
        super().__init__(status, self.title)

    def _message(self) -> str:
        details = [self.detail] if self.detail else []
        details += [f"{e['path']}: {e['message']}" for e in self.errors[:3]]
        text = "; ".join(details)
        if not text.lower().startswith(self.title.lower()):  # which would be said twice
            text = ": ".join(filter(None, (self.title, text)))
        return _line(f"{self.status} {text}")


class InvalidAnswer(RequestError):
    """The answer is not as documented; another server may have sent it.

    Its `status` is the HTTP status, such as 200, or 101 for a message in a stream.
    """

    def __init__(self, status: int, detail: str):
        problem = {"detail": detail}
        super().__init__(status, problem, {}, "Not an answer of the service")


class ConnectionLost(ClientError, ConnectionError):
    """There was no answer: the service can't be reached, the connection broke or timed
    out, or TLS failed. It is also Python's `ConnectionError`."""


class StreamLost(ConnectionLost):
    """The connection broke, and there is no state token to continue from."""


@contextmanager
def reporting(address: str, timeout: float) -> Iterator[None]:
    """Raise the failures of a connection in this block as the clients' exceptions.

    Args:
        address: of the service, without credentials.
        timeout: of the connection, in seconds.

    Raises:
        ClientError: with the address.
        ValueError: the request is invalid.
    """
    try:
        yield
    except ClientError as error:
        error.address = address
        raise
    except httpx.LocalProtocolError:  # its message has the header, maybe a secret
        message = "a header has characters that HTTP does not allow"
        raise ValueError(message) from None
    except (httpx.HTTPError, *CONNECTION_ERRORS) as error:
        failure = _convert(error, timeout)
        failure.address = address
        raise failure from error


def _convert(error: Exception, timeout: float) -> ClientError:
    """The exception for a connection's failure, with a hint how to go on."""
    if isinstance(error, httpx.DecodingError | httpx.TooManyRedirects):
        status = 200 if isinstance(error, httpx.DecodingError) else 302
        return InvalidAnswer(status, str(error))
    cause = _system_error(error)
    reason = cause.strerror if cause else str(error)
    reason = reason or "the connection was closed"
    hint = "Is the service running, and on this port? `unrolled serve` starts one"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        reason = f"no answer in {timeout:g} s"
        hint = "A longer `timeout` waits longer"
    elif isinstance(cause, SSLCertVerificationError):
        hint = "Trust its certificate with `verify`, or with SSL_CERT_FILE"
    elif isinstance(cause, SSLError):
        hint = "Is the address http:// and not https://?"
    elif isinstance(cause, gaierror):
        hint = "Is the name of the host right?"
    elif isinstance(error, httpx.RemoteProtocolError | InvalidMessage):
        hint = "Is it the service's port? Is the address https:// and not http://?"
    return ConnectionLost(f"{_line(reason.rstrip('.'))}. {hint}")


def _system_error(error: Exception) -> OSError | None:
    """The error of a socket or of TLS that a library's exception was raised for."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ClientError):
        if isinstance(cause, OSError) and cause.strerror:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _text(problem: Mapping[str, object], name: str) -> str:
    value = problem.get(name)
    return value if isinstance(value, str) else ""


def _location(status: int, headers: Mapping[str, str]) -> str:
    if 300 <= status < 400 and "location" in headers:
        return f"redirects to {headers['location']}, which is not followed"
    return ""


def _errors(value: object) -> list[dict[str, str]]:
    items = value if isinstance(value, list) else []
    errors = [
        {"path": _text(item, "path"), "message": _text(item, "message")}
        for item in items
        if isinstance(item, dict)
    ]
    return [error for error in errors if error["path"] and error["message"]]


def _seconds(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) <= MAX_DIGITS:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 10**MAX_DIGITS else None


def _line(text: str) -> str:
    """An untrusted text on one line, without control characters."""
    shown = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
    return "".join(c if c.isprintable() else " " for c in shown)
