"""A request that is refused: its bytes, and what is in the answer."""

from dataclasses import dataclass

from service.errors import ServiceError
from tests.robustness.harness.endpoints import Door
from tests.robustness.harness.raw_connection import BINARY, TEXT, frame

SOCKET = (
    b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip
FIELD = b"X-Padding: ".ljust(4094, b"a")  # makes a head longer
PADDING = (FIELD,) * 3  # about 12 KB; it may have 16 KiB
KINDS = {"lines": b"application/x-ndjson"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A way to be refused."""

    name: str
    at: str  # which service refuses it, see `refusal_services`
    error: type[ServiceError] | None  # None: the protocol's own, or the framework's
    request: bytes
    says: tuple[bytes, ...]  # all of them are in the answer
    frame: bytes = b""  # of a WebSocket, once it is open
    slow: bool = False  # only after the time that a request has

    @property
    def padded(self) -> bytes:
        """The request with a long head, where it has one."""
        line, end, rest = self.request.partition(b"\r\n")
        fields = b"".join(field + end for field in PADDING) if end else b""
        return line + end + fields + rest

    def fits(self, answer: bytes) -> bool:
        """Whether it is refused as it says."""
        return bool(answer) and all(one in answer for one in self.says)


def http(method: str, target: str, body: bytes = b"", *fields: bytes, kind: bytes = b"application/json") -> bytes:  # fmt: skip
    """A request, with its length."""
    head = f"{method} {target} HTTP/1.1\r\nHost: here\r\n".encode()
    if method not in ("GET", "HEAD", "DELETE"):
        fields += (b"Content-Type: " + kind, b"Content-Length: %d" % len(body))
    return b"%b%b\r\n%b" % (head, b"".join(b"%b\r\n" % one for one in fields), body)


def handshake(target: str, *fields: bytes, upgrade: tuple[bytes, ...] = SOCKET) -> bytes:  # fmt: skip
    """That of a WebSocket."""
    return http("GET", target, b"", *upgrade, *fields)


def problem(error: type[ServiceError]) -> tuple[bytes, ...]:
    """What the answer says, of the service's own paths."""
    return (b"HTTP/1.1 %d " % error.status, b"urn:unrolled:error:%b" % _slug(error))


def told(error: type[ServiceError]) -> tuple[bytes, ...]:
    """The same, in another server's protocol."""
    status = 400 if error.status == 422 else error.status
    return (b"HTTP/1.1 %d " % status, b'{"error":')


def message(error: type[ServiceError]) -> tuple[bytes, ...]:
    """The same, in a stream."""
    return (
        b'{"error":{',
        b"urn:unrolled:error:%b" % _slug(error),
        b'"status":%d' % error.status,
    )


def _slug(error: type[ServiceError]) -> bytes:
    return error.slug.encode()


def plain(at: str, error: type[ServiceError], request: bytes, note: str, *, slow: bool = False) -> Refused:  # fmt: skip
    """One of a path, in the form that is meant for it."""
    target = request.split(b" ")[1].lower()
    says = told(error) if target[:3] in (b"/v1", b"/v2") else problem(error)
    return Refused(f"{error.slug}: {note}", at, error, request, says, slow=slow)


def below(at: str, error: type[ServiceError], request: bytes, note: str, *, slow: bool = False) -> Refused:  # fmt: skip
    """One of the connection itself, whatever its path."""
    name = f"{error.slug}: {note}"
    return Refused(name, at, error, request, problem(error), slow=slow)


def at_door(
    at: str,
    error: type[ServiceError],
    door: Door,
    body: bytes = b"",
    *fields: bytes,
    path: str = "",
    kind: bytes = b"",
    note: str = "",
    early: bool = False,
) -> Refused:
    """One of a door.

    Args:
        body: none: a good one.
        early: also a stream is refused before its first message.
    """
    path, body = path or door.path, body or door.good()
    name = f"{error.slug}: {door.name}{note and ', '}{note}"
    if door.name == "socket":
        says = problem(error) if early else message(error)
        sent = b"" if early else frame(body, TEXT if body.isascii() else BINARY)
        return Refused(name, at, error, handshake(path, *fields), says, sent)
    kind = kind or KINDS.get(door.name, b"application/json")
    request = http("POST", path, body, *fields, kind=kind)
    if door.dialect:
        says = told(error)
    elif door.name == "lines" and not early:
        says = message(error)
    else:
        says = problem(error)
    return Refused(name, at, error, request, says)
