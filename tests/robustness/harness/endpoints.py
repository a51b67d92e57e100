"""Where bodies come in: every endpoint that takes one, asked in one way."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import websockets.exceptions
import websockets.sync.client as web_sockets

from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.service import silent
from tests.robustness.harness.strict_http import Answer, Closed, Wire

PROBLEM = "application/problem+json"
LONGEST = 8192  # bytes of a refusal
STEPS = 2


class Visit(Protocol):
    """A caller who asks one thing after another."""

    def ask(self, body: bytes) -> Answer: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Door:
    """An endpoint; `form` is a good body around the text of its sequence."""

    name: str
    path: str
    features: int
    form: bytes
    text: bytes  # a member that is a text
    dialect: bool = False  # of another server: refuses with {"error"}, 422 as 400
    breaks: bool = True  # a body may hold line breaks

    def body(self, sequence: bytes) -> bytes:
        return self.form.replace(b"%s", sequence)

    def frame(self, cell: bytes = b"0.5", features: int = 0) -> bytes:
        """A step, of which the first number may be anything."""
        return b"[%b]" % b",".join(
            [cell] + [b"0.5"] * ((features or self.features) - 1)
        )

    def good(self) -> bytes:
        return self.body(b"[%b]" % b",".join([self.frame()] * STEPS))

    def cell(self, text: bytes) -> bytes:
        """A body with this in the place of a number."""
        return self.body(b"[%b,%b]" % (self.frame(), self.frame(text)))

    def wanted(self, status: int) -> int:
        return 400 if self.dialect and status == 422 else status

    @contextmanager
    def visit(self, port: int, seconds: float = 5) -> Iterator[Visit]:
        kind = {"lines": _Lines, "socket": _Socket}.get(self.name, _Http)
        made = kind(self, port, seconds)
        try:
            yield made
        finally:
            made.close()


INFER = (
    b'{"inputs": [{"name": "frames", "datatype": "FP32", "shape": [1, 2, 28],'
    b' "data": %s}]}'
)
DOORS = [
    Door("classify", "/classify", 28, b'{"sequences": [%s]}', b"model"),
    Door("label", "/label", 128, b'{"sequences": [%s], "model": "letters-live"}', b"model"),
    Door("predict", "/v1/models/digits:predict", 28, b'{"instances": [%s]}', b"signature_name", True),
    Door("examples", "/v1/models/digits:classify", 28, b'{"examples": [{"frames": %s}]}', b"signature_name", True),
    Door("infer", "/v2/models/digits/infer", 28, INFER, b"id", True),
    Door("lines", "/stream?model=digits", 28, b'{"frames": %s}', b"state", breaks=False),
    Door("socket", "/stream?model=digits", 28, b'{"frames": %s}', b"state"),
]  # fmt: skip
HTTP = [door for door in DOORS if door.name not in ("lines", "socket")]
STREAMS = [door for door in DOORS if door not in HTTP]


class _Http:
    def __init__(self, door: Door, port: int, seconds: float):
        self._path, self._wire = door.path, Wire(port, seconds)

    def ask(self, body: bytes) -> Answer:
        return self._wire.request("POST", self._path, body)

    def close(self) -> None:
        self._wire.close()


class _Lines:
    """A message is a line, and so is its answer."""

    def __init__(self, door: Door, port: int, seconds: float):
        self._path, self._wire = door.path, Wire(port, seconds)
        self._open = False

    def ask(self, body: bytes) -> Answer:
        if not self._open:
            self._wire.send(
                b"POST %b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: application/x-ndjson\r\n\r\n" % self._path.encode()
            )
            head = self._wire.head()
            if not head.startswith(b"HTTP/1.1 200"):
                raise Closed(head[:80].decode("latin-1"))
            self._open = True
        self._wire.send(b"%x\r\n%b\n\r\n" % (len(body) + 1, body))
        line = self._wire.line()
        told = _told(line)
        if told is None:
            self.close()
        return told or Answer(200, {}, line)

    def close(self) -> None:
        self._open = False
        self._wire.close()


class _Socket:
    """A message of a WebSocket."""

    def __init__(self, door: Door, port: int, seconds: float):
        self._url = f"ws://127.0.0.1:{port}{door.path}"
        self._seconds = seconds
        self._socket: web_sockets.ClientConnection | None = None
        self._held = ExitStack()

    def ask(self, body: bytes) -> Answer:
        if self._socket is None:
            self._held = ExitStack()
            self._socket = self._held.enter_context(
                web_sockets.connect(
                    self._url, max_size=None, compression=None, proxy=None
                )
            )
        try:
            self._socket.send(body)
            line = self._socket.recv(self._seconds)
        except websockets.exceptions.ConnectionClosed as error:
            self.close()
            raise Closed(str(error)) from None
        line = line.encode() if isinstance(line, str) else line
        told = _told(line)
        if told is None:
            self.close()
        return told or Answer(200, {}, line)

    def close(self) -> None:
        self._held.close()
        self._socket = None


def _told(line: bytes) -> Answer | None:
    """A stream's answer as if it was one of HTTP; None where it was the last."""
    told = json.loads(line)
    if "end" in told:
        return None
    if "error" not in told:
        return Answer(200, {"content-type": "application/json"}, line)
    problem = told["error"]
    body = json.dumps(problem).encode()
    return Answer(problem["status"], {"content-type": PROBLEM}, body)


def refusal(tally: Tally, where: str, answer: Answer, *, dialect: bool) -> None:
    """Check that a refusal is of the right form, short, and says nothing of us."""
    kind, told = _parsed(answer)
    if dialect:
        tally.check(
            kind == "application/json" and list(told) == ["error"],
            f"{where}: no {{error}} but {kind} {answer.text[:80]}",
        )
    else:
        good = kind == PROBLEM and told.get("status") == answer.status
        good &= str(told.get("type", "")).startswith("urn:unrolled:error:")
        good &= {"title", "detail", "request_id"} <= set(told)
        tally.check(good, f"{where}: no problem but {kind} {answer.text[:80]}")
    short = len(answer.body) <= LONGEST
    tally.check(short, f"{where}: a refusal of {len(answer.body)} bytes")
    tally.check(silent(answer.text), f"{where}: tells of us: {answer.text[:200]}")


def _parsed(answer: Answer) -> tuple[str, dict[str, Any]]:
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = {}
    return answer.kind, told if isinstance(told, dict) else {}
