"""A connection on which any bytes can be sent, and answers are read strictly.

No client library: they repair what they send, forgive what they read, and cost more
time than the service does.
"""

import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

MOST_BYTES = 64 * 2**20  # of an answer; more is a fault
STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\x20-\x7e]*")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}")


class Malformed(Exception):
    """An answer that is no HTTP."""


class Closed(Exception):
    """The service has closed the connection, before an answer."""


class Answer(NamedTuple):
    """One that was read to its end."""

    status: int
    headers: Mapping[str, str]  # by small letters
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Wire:
    """One connection to the service."""

    def __init__(self, port: int, seconds: float = 5):
        """
        Args:
            seconds: that the service may be silent before it counts as hung.
        """
        self._port, self._seconds = port, seconds
        self._socket: socket.socket | None = None
        self._read = b""
        self.sent = 0.0  # when the last request was

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._read = None, b""

    def send(self, data: bytes) -> None:
        """Send it; what the service no longer reads is left."""
        if self._socket is None:
            address = "127.0.0.1", self._port
            self._socket = socket.create_connection(address, self._seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = time.monotonic()
        # Perhaps it has answered before the end: to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def answer(self, method: str = "POST") -> Answer:
        """The next.

        Raises:
            Closed: there is none, and will be none.
            TimeoutError: nothing comes.
            Malformed: it is no HTTP.
        """
        while True:
            head = self._until(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            matched = STATUS.fullmatch(lines[0])
            if matched is None:
                raise Malformed(f"status line {lines[0][:80]!r}")
            if matched[1] != b"100":
                break
        headers: dict[str, str] = {}
        for line in lines[1:]:
            field = FIELD.fullmatch(line)
            if field is None:
                raise Malformed(f"header {line[:80]!r}")
            name = field[1].decode().lower()
            if name in headers and name in ("content-length", "transfer-encoding"):
                raise Malformed(f"two of {name}")
            headers[name] = field[2].decode().strip()
        status = int(matched[1])
        if method == "HEAD" or status in (101, 204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            if "content-length" in headers:
                raise Malformed("a length beside chunks")
            body = self._chunks()
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            raise Malformed("a body of no length")
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, headers, body)

    def ends(self) -> bool:
        """Whether the service closes it, without another byte, in its time."""
        if self._socket is None:
            return True
        try:
            return not self._read and not self._receive()
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
    ) -> Answer:
        """Ask, on a new connection where the last was closed.

        Args:
            chunk: sent in chunks of so many bytes; 0: with its length.
        """
        given = {"Host": "127.0.0.1", "Content-Type": "application/json"}
        given |= dict(headers or {})
        given |= {"Transfer-Encoding": "chunked"} if chunk else {}
        given |= {} if chunk else {"Content-Length": str(len(body))}
        fields = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        head = f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode("latin-1")
        if chunk:
            body = chunked(body, chunk)
        try:
            self.send(head + body)
            return self.answer(method)
        except Closed:  # it was idle, or refused before: once more
            self.close()
            self.send(head + body)
            return self.answer(method)

    def line(self) -> bytes:
        """The next of a stream's answer, without its break; empty: there is none."""
        return self._chunk().rstrip(b"\n")

    def head(self) -> bytes:
        """That of an answer whose body is read by `line`."""
        return self._until(b"\r\n\r\n")

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while data := self._chunk():
            parts.append(data)
        return b"".join(parts)

    def _chunk(self) -> bytes:
        size = self._until(b"\r\n")
        if CHUNK.fullmatch(size) is None:
            raise Malformed(f"chunk size {size[:40]!r}")
        data = self._exactly(int(size, 16))
        if self._exactly(2) != b"\r\n":
            raise Malformed("a chunk without its end")
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        found, _, self._read = self._read.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            self._more()
        found, self._read = self._read[:size], self._read[size:]
        return found

    def _more(self) -> None:
        data = self._receive()
        if not data:
            if self._read:
                raise Malformed(f"ends within {self._read[:80]!r}")
            raise Closed
        self._read += data
        if len(self._read) > MOST_BYTES:
            raise Malformed("endless")

    def _receive(self) -> bytes:
        if self._socket is None:
            raise Closed
        self._socket.settimeout(self._seconds)
        try:
            return self._socket.recv(2**18)
        except ConnectionResetError:
            return b""


def chunked(body: bytes, size: int) -> bytes:
    """A body in chunks."""
    cuts = range(0, len(body), size)
    parts = [body[at : at + size] for at in cuts]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
