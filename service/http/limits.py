"""Connection limits: how many may be open, and what a request's head may hold.

When there are too many, the connection that has waited longest for its client is evicted.
"""

import logging
import random
import re
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service import errors
from service.callers.memory_budget import MemoryBudget
from service.callers.request_pacing import RequestPacer
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# Of RFC 9110, 7.2: a name or an address, and perhaps a port.
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(:[0-9]*)?")
H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n|$)", re.IGNORECASE)


class Evictable(Protocol):
    """A connection, as the limiter sees it."""

    def make_room(self) -> None:
        """Close the connection, whose place another one needs."""
        ...


class ConnectionLimiter:
    """The limits that all connections share, and the order in which they are evicted."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        shed: Callable[[bytes, int], bytes | None],
        budget: MemoryBudget,
    ):
        """
        Args:
            shed: see `LoadShedder.refuse`.
            budget: of the bytes buffered for all connections.
        """
        self.head_seconds = settings.header_seconds
        self.body_seconds = settings.body_seconds
        self.max_head_bytes = settings.max_header_bytes
        self.max_headers = settings.max_headers
        self.idle_seconds = settings.keep_alive_seconds
        self.shed, self.budget = shed, budget
        self.pacer = RequestPacer()
        self.draining = False  # no connection is kept for another request
        self.limit, self._metrics = settings.max_connections, metrics
        # Each in order of time: first the one that has waited longest for its client,
        # between requests or in the middle of one that stalls.
        self._idle: dict[Evictable, None] = {}
        # Connections without a request yet. If there are many, they are evicted before
        # idle ones, so that a burst of them does not displace returning clients.
        self._new: dict[Evictable, None] = {}
        self._lingering: dict[Evictable, None] = {}

    def has_room(self, connections: int) -> bool:
        """Return whether so many connections may be open, after an eviction if need be."""
        if connections <= self.limit:
            return True
        active = connections - len(self._lingering)
        if self._lingering:  # these have had their response
            self._evict(self._lingering)
        if active <= self.limit:
            return True
        many = len(self._new) > self.limit // 2
        waiting = self._new if many or not self._idle else self._idle
        if not waiting:
            return False
        self._evict(waiting)
        return True

    def _evict(self, connections: dict[Evictable, None]) -> None:
        longest = next(iter(connections))
        del connections[longest]
        longest.make_room()

    def mark_lingering(self, connection: Evictable) -> None:
        """The connection stays only until its client has read the last response."""
        self.mark_active(connection)
        self._lingering[connection] = None

    def mark_idle(self, connection: Evictable, *, new: bool = False) -> None:
        """The connection waits for its client.

        Args:
            new: it has had no request yet.
        """
        (self._new if new else self._idle)[connection] = None

    def mark_active(self, connection: Evictable) -> None:
        """The connection does not wait for its client, or has been closed."""
        for connections in (self._idle, self._new, self._lingering):
            connections.pop(connection, None)

    def check_head(
        self, size: int, headers: int, hosts: int, version: str
    ) -> errors.ServiceError | None:
        """Return the error of a request's head, if it has one.

        Args:
            size: in bytes.
            hosts: how many `Host` headers there are.
        """
        if size > self.max_head_bytes or headers > self.max_headers:
            return self.head_too_large()
        if version not in ("1.0", "1.1"):
            return errors.MalformedHttp("only HTTP/1.1 and HTTP/1.0 are supported")
        if hosts != 1 and version == "1.1":
            detail = "there must be one Host header, with a name or an address"
            return errors.MalformedHttp(detail)
        return None

    def head_too_large(self) -> errors.ServiceError:
        limits = f"at most {self.max_head_bytes} bytes and {self.max_headers} headers"
        return errors.HeadTooLarge(f"{limits} in a request's head")

    def error_response(self, error: errors.ServiceError) -> bytes:
        """A connection's own HTTP response, which no middleware logs or counts."""
        self._metrics.refused.labels(error.slug).inc()
        log.info("refused", extra={"status": error.status, "kind": error.slug})
        body = error.body(f"{random.getrandbits(64):016x}")
        head = f"content-type: {errors.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        for name, value in error.headers.items():
            head += f"{name}: {value}\r\n"
        line = STATUS_LINE[error.status]
        return line + head.encode() + b"connection: close\r\n\r\n" + body


def without_h2c(data: bytes) -> bytes:
    """Remove a request's offer to upgrade to HTTP/2, which a server may ignore (RFC 9110,
    7.8). Some clients start with one, after which the parser expects no more requests."""
    end = data.find(b"\r\n\r\n")
    if data.find(b"h2c", 0, max(end, 0)) < 0:
        return data
    return H2C.sub(b"", data[:end]) + data[end:]
