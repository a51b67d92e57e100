"""A blocking HTTP connection that sends any bytes, and reads responses strictly.

No client library: they repair what they send, forgive what they read, and cost more
time than the service does.
"""

import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

MAX_BYTES = 64 * 2**20  # of a response
STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\x20-\x7e]*")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}")


class MalformedResponse(Exception):
    """The response is not valid HTTP."""


class ConnectionClosed(Exception):
    """The service closed the connection before a response."""


class Response(NamedTuple):
    """A complete response."""

    status: int
    headers: Mapping[str, str]  # by lower-case names
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class StrictConnection:
    """One connection to the service, opened when it is needed."""

    def __init__(self, port: int, seconds: float = 5):
        """
        Args:
            seconds: after which a silent service counts as hung.
        """
        self._port, self._seconds = port, seconds
        self._socket: socket.socket | None = None
        self._buffer = b""

    def __enter__(self) -> "StrictConnection":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def send(self, data: bytes) -> None:
        """Send bytes; those that the service no longer reads are dropped."""
        if self._socket is None:
            address = "127.0.0.1", self._port
            self._socket = socket.create_connection(address, self._seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The service may have responded before the end of the request.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def read_response(self, method: str = "POST") -> Response:
        """The next response.

        Raises:
            ConnectionClosed: there is none, and will be none.
            TimeoutError: nothing arrives.
            MalformedResponse: it is not valid HTTP.
        """
        while True:
            lines = self.read_head().split(b"\r\n")
            match = STATUS.fullmatch(lines[0])
            if match is None:
                raise MalformedResponse(f"status line {lines[0][:80]!r}")
            if match[1] != b"100":
                break
        headers: dict[str, str] = {}
        for line in lines[1:]:
            field = FIELD.fullmatch(line)
            if field is None:
                raise MalformedResponse(f"header {line[:80]!r}")
            name = field[1].decode().lower()
            if name in headers and name in ("content-length", "transfer-encoding"):
                raise MalformedResponse(f"two of {name}")
            headers[name] = field[2].decode().strip()
        status = int(match[1])
        if method == "HEAD" or status in (101, 204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            if "content-length" in headers:
                raise MalformedResponse("Content-Length and chunks")
            body = b"".join(iter(self._read_chunk, b""))
        elif "content-length" in headers:
            body = self._read_exactly(int(headers["content-length"]))
        else:
            raise MalformedResponse("a body without a length")
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Response(status, headers, body)

    def is_closed_by_server(self) -> bool:
        """The service closes the connection in time, without another byte."""
        if self._socket is None:
            return True
        try:
            return not self._buffer and not self._receive()
        except TimeoutError:
            return False

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        chunk: int = 0,
    ) -> Response:
        """Send a request, on a new connection if the last was closed.

        Args:
            chunk: the size of its chunks; 0: sent with its length.
        """
        fields = {"Host": "127.0.0.1", "Content-Type": "application/json"}
        fields |= dict(headers or {})
        if chunk:
            fields["Transfer-Encoding"] = "chunked"
            body = chunked(body, chunk)
        else:
            fields["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        return self.raw_request(head + body, method)

    def raw_request(self, data: bytes, method: str = "POST") -> Response:
        """Send bytes; once more if the connection was closed after the last."""
        try:
            self.send(data)
            return self.read_response(method)
        except ConnectionClosed:
            self.close()
            self.send(data)
            return self.read_response(method)

    def read_head(self) -> bytes:
        return self._read_until(b"\r\n\r\n")

    def read_line(self) -> bytes:
        """The next line of a streamed response; empty: there is none."""
        return self._read_chunk().rstrip(b"\n")

    def _read_chunk(self) -> bytes:
        size = self._read_until(b"\r\n")
        if CHUNK.fullmatch(size) is None:
            raise MalformedResponse(f"chunk size {size[:40]!r}")
        data = self._read_exactly(int(size, 16))
        if self._read_exactly(2) != b"\r\n":
            raise MalformedResponse("a chunk without its end")
        return data

    def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._fill()
        data, _, self._buffer = self._buffer.partition(mark)
        return data

    def _read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _fill(self) -> None:
        data = self._receive()
        if not data:
            if self._buffer:
                raise MalformedResponse(f"ends within {self._buffer[:80]!r}")
            raise ConnectionClosed
        self._buffer += data
        if len(self._buffer) > MAX_BYTES:
            raise MalformedResponse("endless")

    def _receive(self) -> bytes:
        if self._socket is None:
            raise ConnectionClosed
        self._socket.settimeout(self._seconds)
        try:
            return self._socket.recv(2**18)
        except ConnectionResetError:
            return b""


def chunked(body: bytes, size: int) -> bytes:
    """A body in chunks."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
