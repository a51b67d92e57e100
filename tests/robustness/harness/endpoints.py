"""Every endpoint that takes a body, behind one client interface."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import websockets.exceptions
import websockets.sync.client

from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.service import reveals_internals
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    Response,
    StrictConnection,
)

PROBLEM = "application/problem+json"
MAX_REFUSAL_BYTES = 8192
STEPS = 2


class Client(Protocol):
    """Sends one body after another to an endpoint."""

    def send(self, body: bytes) -> Response: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint; `template` is a valid body around the JSON of its sequence."""

    name: str
    path: str
    features: int
    template: bytes
    text_field: bytes  # a member that holds a text
    compat: bool = False  # another server's API: refuses with {"error"}, 422 as 400
    allows_newlines: bool = True  # within a body

    def body(self, sequence: bytes) -> bytes:
        return self.template.replace(b"%s", sequence)

    def frame(self, number: bytes = b"0.5", features: int = 0) -> bytes:
        """A frame whose first number may be anything."""
        rest = [b"0.5"] * ((features or self.features) - 1)
        return b"[%b]" % b",".join([number, *rest])

    def valid_body(self) -> bytes:
        return self.body(b"[%b]" % b",".join([self.frame()] * STEPS))

    def body_with_number(self, text: bytes) -> bytes:
        """A body with this text in place of a number."""
        return self.body(b"[%b,%b]" % (self.frame(), self.frame(text)))

    def body_of_sequences(self, sequences: list[bytes]) -> bytes:
        separator = b'}, {"frames": ' if self.name == "examples" else b","
        return self.body(separator.join(sequences))

    def status(self, native: int) -> int:
        """The status of this API for the native API's."""
        return 400 if self.compat and native == 422 else native

    @contextmanager
    def connect(self, port: int, seconds: float = 5) -> Iterator[Client]:
        clients = {"lines": _NdjsonClient, "socket": _WebSocketClient}
        client = clients.get(self.name, _HttpClient)(self, port, seconds)
        try:
            yield client
        finally:
            client.close()

    def status_of_valid_body(self, port: int) -> int:
        with self.connect(port) as client:
            return client.send(self.valid_body()).status


INFER_BODY = (
    b'{"inputs": [{"name": "frames", "datatype": "FP32", "shape": [1, 2, 28],'
    b' "data": %s}]}'
)
ENDPOINTS = [
    Endpoint("classify", "/classify", 28, b'{"sequences": [%s]}', b"model"),
    Endpoint("label", "/label", 128, b'{"sequences": [%s], "model": "letters-live"}', b"model"),
    Endpoint("predict", "/v1/models/digits:predict", 28, b'{"instances": [%s]}', b"signature_name", True),
    Endpoint("examples", "/v1/models/digits:classify", 28, b'{"examples": [{"frames": %s}]}', b"signature_name", True),
    Endpoint("infer", "/v2/models/digits/infer", 28, INFER_BODY, b"id", True),
    Endpoint("lines", "/stream?model=digits", 28, b'{"frames": %s}', b"state", allows_newlines=False),
    Endpoint("socket", "/stream?model=digits", 28, b'{"frames": %s}', b"state"),
]  # fmt: skip
CLASSIFY, LABEL, PREDICT, EXAMPLES, INFER, LINES, SOCKET = ENDPOINTS
HTTP, STREAMS = ENDPOINTS[:5], ENDPOINTS[5:]


class _HttpClient:
    def __init__(self, endpoint: Endpoint, port: int, seconds: float):
        self._path, self._connection = endpoint.path, StrictConnection(port, seconds)

    def send(self, body: bytes) -> Response:
        return self._connection.request("POST", self._path, body)

    def close(self) -> None:
        self._connection.close()


class _NdjsonClient:
    """Sends each body as a line of one request, and reads a line for each."""

    def __init__(self, endpoint: Endpoint, port: int, seconds: float):
        self._path, self._connection = endpoint.path, StrictConnection(port, seconds)
        self._open = False

    def send(self, body: bytes) -> Response:
        if not self._open:
            self._connection.send(
                b"POST %b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: application/x-ndjson\r\n\r\n" % self._path.encode()
            )
            head = self._connection.read_head()
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionClosed(head[:80].decode("latin-1"))
            self._open = True
        self._connection.send(b"%x\r\n%b\n\r\n" % (len(body) + 1, body))
        return _stream_response(self, self._connection.read_line())

    def close(self) -> None:
        self._open = False
        self._connection.close()


class _WebSocketClient:
    """Sends each body as a message."""

    def __init__(self, endpoint: Endpoint, port: int, seconds: float):
        self._url = f"ws://127.0.0.1:{port}{endpoint.path}"
        self._seconds = seconds
        self._stack = ExitStack()
        self._socket: websockets.sync.client.ClientConnection | None = None

    def send(self, body: bytes) -> Response:
        if self._socket is None:
            connection = websockets.sync.client.connect(
                self._url, max_size=None, compression=None, proxy=None
            )
            self._socket = self._stack.enter_context(connection)
        try:
            self._socket.send(body)
            line = self._socket.recv(self._seconds)
        except websockets.exceptions.ConnectionClosed as error:
            self.close()
            raise ConnectionClosed(str(error)) from None
        return _stream_response(self, line.encode() if isinstance(line, str) else line)

    def close(self) -> None:
        self._stack.close()
        self._socket = None


def _stream_response(client: Client, line: bytes) -> Response:
    """A stream's message as an HTTP response; the last one closes the client."""
    message = json.loads(line)
    if "end" in message:
        client.close()
        return Response(200, {}, line)
    if "error" not in message:
        return Response(200, {"content-type": "application/json"}, line)
    body = json.dumps(message["error"]).encode()
    return Response(message["error"]["status"], {"content-type": PROBLEM}, body)


def check_refusal(
    tally: Tally, where: str, response: Response, *, compat: bool
) -> None:
    """Check that a refusal has its API's form, is short, and reveals no internals."""
    media_type, problem = response.media_type, _parsed(response)
    if compat:
        valid = media_type == "application/json" and list(problem) == ["error"]
    else:
        valid = media_type == PROBLEM and problem.get("status") == response.status
        valid &= str(problem.get("type", "")).startswith("urn:unrolled:error:")
        valid &= {"title", "detail", "request_id"} <= set(problem)
    form = "{error}" if compat else "problem"
    tally.check(valid, f"{where}: no {form} but {media_type} {response.text[:80]}")
    size = len(response.body)
    tally.check(size <= MAX_REFUSAL_BYTES, f"{where}: a refusal of {size} bytes")
    internals = reveals_internals(response.text)
    tally.check(not internals, f"{where}: internals in {response.text[:200]}")


def _parsed(response: Response) -> dict[str, Any]:
    try:
        value = json.loads(response.body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
