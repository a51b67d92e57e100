"""A server that answers each request as a list says, or breaks the connection."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.servers import SECONDS, reset_connection

RESET = object()  # a reply: the connection is reset


@dataclass(frozen=True)
class Request:
    """A request as it came: `GET`, `/models`, and the parsed body."""

    method: str
    path: str
    body: object
    seconds: float


@dataclass(frozen=True)
class Reply:
    """A response, with a JSON body."""

    status: int
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = json.dumps(self.body).encode()
        headers = self.headers | {"Content-Length": str(len(body))}
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        return f"HTTP/1.1 {self.status} Said\r\n{lines}\r\n".encode() + body


class Server(socketserver.ThreadingTCPServer):
    """Answers requests with what `answer` returns for each: a `Reply` or `RESET`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request], object]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.requests = answer, []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    timeout = SECONDS

    def handle(self):
        while line := self.rfile.readline():
            method, path, _ = line.decode().split()
            head = b"".join(iter(self.rfile.readline, b"\r\n")).decode().lower()
            _, _, length = head.partition("content-length:")
            body = self.rfile.read(int(length.split()[0])) if length else b"null"
            request = Request(method, path, json.loads(body), time.monotonic())
            with self.server.lock:
                self.server.requests.append(request)
            reply = self.server.answer(request)
            if reply is RESET:
                reset_connection(self.connection)
                return
            self.wfile.write(reply.encode())


@contextmanager
def scripted(answer: Callable[[Request], object]) -> Iterator[Server]:
    """Run such a server until the block ends."""
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(SECONDS)


def in_turn(*replies: object) -> Callable[[Request], object]:
    """Answer with these one after another, and then always with the last one."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
