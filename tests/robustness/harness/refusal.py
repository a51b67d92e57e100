"""Requests that are refused: their bytes, and what the response must contain."""

from dataclasses import dataclass

from service.errors import ServiceError
from tests.robustness.harness.endpoints import Endpoint
from tests.robustness.harness.raw_connection import BINARY, TEXT, websocket_frame

UPGRADE = (
    b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip
FIELD = b"X-Padding: ".ljust(4094, b"a")
PADDING = (FIELD,) * 3  # about 12 KB of a head, of the 16 KiB allowed


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is refused."""

    name: str
    stage: str  # of the service that refuses it, see `refusing_services`
    error: type[ServiceError] | None  # None: by the protocol or the framework
    request: bytes
    expected: tuple[bytes, ...]  # parts of the response
    frame: bytes = b""  # of a WebSocket, once it is open
    slow: bool = False  # refused only after a timeout

    @property
    def padded_request(self) -> bytes:
        """The request with a long head, if it has one."""
        line, end, rest = self.request.partition(b"\r\n")
        fields = b"".join(field + end for field in PADDING) if end else b""
        return line + end + fields + rest

    def matches(self, response: bytes) -> bool:
        return bool(response) and all(part in response for part in self.expected)


def http(method: str, target: str, body: bytes = b"", *fields: bytes, media_type: bytes = b"application/json") -> bytes:  # fmt: skip
    """A request with its length."""
    head = f"{method} {target} HTTP/1.1\r\nHost: here\r\n".encode()
    if method not in ("GET", "HEAD", "DELETE"):
        fields += (b"Content-Type: " + media_type, b"Content-Length: %d" % len(body))
    return b"%b%b\r\n%b" % (head, b"".join(b"%b\r\n" % field for field in fields), body)


def handshake(target: str, *fields: bytes, upgrade: tuple[bytes, ...] = UPGRADE) -> bytes:  # fmt: skip
    """The request that opens a WebSocket."""
    return http("GET", target, b"", *upgrade, *fields)


def native_error(error: type[ServiceError]) -> tuple[bytes, ...]:
    """The response at the service's own paths."""
    return (b"HTTP/1.1 %d " % error.status, b"urn:unrolled:error:" + error.slug.encode())  # fmt: skip


def compat_error(error: type[ServiceError]) -> tuple[bytes, ...]:
    """The response in another server's API."""
    status = 400 if error.status == 422 else error.status
    return (b"HTTP/1.1 %d " % status, b'{"error":')


def stream_error(error: type[ServiceError]) -> tuple[bytes, ...]:
    """The message in a stream."""
    slug = b"urn:unrolled:error:" + error.slug.encode()
    return (b'{"error":{', slug, b'"status":%d' % error.status)


def at_path(stage: str, error: type[ServiceError], method: str, target: str, body: bytes = b"", *fields: bytes) -> Refusal:  # fmt: skip
    """A refusal in the form of the request's path."""
    compat = target.startswith(("/v1", "/v2"))
    expected = compat_error(error) if compat else native_error(error)
    request = http(method, target, body, *fields)
    return Refusal(f"{error.slug}: {method} {target}", stage, error, request, expected)


def at_connection(stage: str, error: type[ServiceError], request: bytes, note: str, *, slow: bool = False) -> Refusal:  # fmt: skip
    """A refusal by the connection, whatever the path."""
    name, expected = f"{error.slug}: {note}", native_error(error)
    return Refusal(name, stage, error, request, expected, slow=slow)


def at_endpoint(
    stage: str,
    error: type[ServiceError],
    endpoint: Endpoint,
    body: bytes = b"",
    *fields: bytes,
    path: str = "",
    media_type: bytes = b"",
    note: str = "",
    early: bool = False,
) -> Refusal:
    """A refusal by an endpoint.

    Args:
        body: a valid one by default.
        early: streams are refused before their first message.
    """
    path, body = path or endpoint.path, body or endpoint.valid_body()
    name = f"{error.slug}: {endpoint.name}{note and ', '}{note}"
    if endpoint.name == "socket":
        expected = native_error(error) if early else stream_error(error)
        first = TEXT if body.isascii() else BINARY
        frame = b"" if early else websocket_frame(body, first)
        return Refusal(name, stage, error, handshake(path, *fields), expected, frame)
    ndjson = endpoint.name == "lines"
    media_type = media_type or (b"application/x-ndjson" if ndjson else b"application/json")  # fmt: skip
    request = http("POST", path, body, *fields, media_type=media_type)
    if endpoint.compat:
        expected = compat_error(error)
    elif ndjson and not early:
        expected = stream_error(error)
    else:
        expected = native_error(error)
    return Refusal(name, stage, error, request, expected)
