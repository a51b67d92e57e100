"""All connections: no more than may be, and none that is only held open."""

import logging
import random
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service import errors
from service.callers.memory_budget import MemoryBudget
from service.callers.request_pacing import RequestPacer
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Member(Protocol):
    """A connection that may have to go."""

    def make_room(self) -> None:
        """It waits for its client, and another needs its place."""
        ...


class ConnectionLimiter:
    """What connections have in common: their limits, and who waits for its client."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        shed: Callable[[bytes, int], bytes | None],
        budget: MemoryBudget,
    ):
        """
        Args:
            budget: of the bytes held for all connections.
            shed: answers what need not be looked at; see `Shedding.answer`.
        """
        self.head_seconds = settings.header_seconds
        self.body_seconds = settings.body_seconds
        self.head_bytes = settings.max_header_bytes
        self.heads = settings.max_headers
        self.idle_seconds = settings.keep_alive_seconds
        self.shed, self.budget = shed, budget
        self.pacer = RequestPacer()
        self.draining = False  # no connection is to be kept for another request
        self.limit, self._metrics = settings.max_connections, metrics
        # The one whose client is awaited for longest first: idle, or in the midst of
        # a request that does not come on.
        self._idle: dict[Member, None] = {}
        # Those that have asked nothing yet. They go before others where they are many:
        # so a burst of them doesn't take the places of clients that come back.
        self._new: dict[Member, None] = {}
        self._lingering: dict[Member, None] = {}

    def has_room(self, connections: int) -> bool:
        """Whether one more may stay, with so many there; makes room if it can."""
        if connections <= self.limit:
            return True
        active = connections - len(self._lingering)
        if self._lingering:  # they have been answered
            self._evict(self._lingering)
        if active <= self.limit:
            return True
        many = len(self._new) > self.limit // 2
        waiting = self._new if many or not self._idle else self._idle
        if not waiting:
            return False
        self._evict(waiting)
        return True

    def _evict(self, members: dict[Member, None]) -> None:
        longest = next(iter(members))
        del members[longest]
        longest.make_room()

    def mark_lingering(self, member: Member) -> None:
        """It is closed as soon as its client has heard why."""
        self.mark_active(member)
        self._lingering[member] = None

    def mark_idle(self, member: Member, *, new: bool = False) -> None:
        """A client has the word, for as long as it may.

        Args:
            new: it has asked nothing yet.
        """
        (self._new if new else self._idle)[member] = None

    def mark_active(self, member: Member) -> None:
        """It has said all, or has gone."""
        for members in (self._idle, self._new, self._lingering):
            members.pop(member, None)

    def fault(
        self, size: int, fields: int, hosts: int, version: str
    ) -> errors.ServiceError | None:
        """What is wrong with a head of so many bytes, fields and Host headers."""
        if size > self.head_bytes or fields > self.heads:
            return self.too_long()
        if version not in ("1.0", "1.1"):
            return errors.MalformedHttp("only HTTP/1.1 and HTTP/1.0 are spoken")
        if hosts != 1 and version == "1.1":
            told = "there must be one Host header, a name or an address"
            return errors.MalformedHttp(told)
        return None

    def too_long(self) -> errors.ServiceError:
        limits = f"at most {self.head_bytes} bytes and {self.heads} fields"
        return errors.HeadTooLarge(f"{limits} in a request's head")

    def refusal(self, error: errors.ServiceError) -> bytes:
        """The answer of a connection itself, below all that is logged and counted
        else."""
        self._metrics.refused.labels(error.slug).inc()
        log.info("refused", extra={"status": error.status, "kind": error.slug})
        body = error.body(f"{random.getrandbits(64):016x}")
        head = f"content-type: {errors.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        for name, value in error.headers.items():
            head += f"{name}: {value}\r\n"
        line = STATUS_LINE[error.status]
        return line + head.encode() + b"connection: close\r\n\r\n" + body
