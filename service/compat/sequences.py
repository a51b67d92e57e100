"""Sequences whose state the service keeps under an id that the client chose.

Like Triton's sequence batcher: the first request, with START, creates a sequence; each
further one continues it; one with END is its last. Requests with the same id are
computed one after another, in the order of their arrival.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from service.callers.owner_quota import OwnerQuota
from service.errors import InvalidRequest, Overloaded
from service.registry.catalog import Model
from service.registry.state_tokens import INITIAL_STATE, State
from service.settings import Settings
from service.telemetry.metrics import Metrics

CHECK_SECONDS = 1.0  # between checks for idle sequences, at most
MAX_WAITING = 64  # requests with one id


class SequenceSession:
    """A sequence that is kept."""

    def __init__(self, model: Model, quota_owner: str):
        self.model, self.quota_owner = model, quota_owner
        self.state: State | None = None  # None: it has not begun, or has ended
        self.last_used = time.monotonic()
        self.waiting = 0  # requests
        self.lock = asyncio.Lock()


class SequenceSessions:
    """All sequences, and their limits."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._quota = OwnerQuota(settings.max_streams, "sequences are kept")
        self._idle_seconds = settings.stream_idle_seconds
        self._sessions: dict[Hashable, SequenceSession] = {}
        self._timer: asyncio.TimerHandle | None = None
        metrics.kept_sequences.set_function(lambda: len(self._sessions))

    @asynccontextmanager
    async def use(
        self,
        key: Hashable,
        model: Model,
        *,
        start: bool,
        end: bool,
        quota_owner: str = "",
    ) -> AsyncIterator[SequenceSession]:
        """Wait for the turn of a request; the block replaces the session's state.

        Args:
            key: of the sequence: the API key's owner, the model, and the id.
            model: for a sequence that starts; one that continues keeps its own.
            quota_owner: see `OwnerQuota.acquire`.

        Raises:
            InvalidRequest: there is no such sequence, and the request has no START.
            TooManyStreams: the limit is reached, in total or of this owner.
            Overloaded: too many of its requests wait.
        """
        session = self._get_or_create(key, model, start, quota_owner)
        if session.waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} requests of this sequence are waiting"
            raise Overloaded(message, headers={"Retry-After": "1"})
        session.waiting += 1
        try:
            async with session.lock:
                before = session.model, session.state
                if start:
                    session.model, session.state = model, INITIAL_STATE
                if session.state is None:
                    raise _not_started()
                try:
                    yield session
                except BaseException:
                    # A failed request changes nothing.
                    session.model, session.state = before
                    raise
                if end:
                    session.state = None
        finally:
            session.waiting -= 1
            session.last_used = time.monotonic()
            if session.state is None and not session.waiting:
                self._remove(key)

    def _get_or_create(
        self, key: Hashable, model: Model, start: bool, quota_owner: str
    ) -> SequenceSession:
        session = self._sessions.get(key)
        if session is not None:
            return session
        if not start:
            raise _not_started()
        self._quota.acquire(quota_owner)
        session = self._sessions[key] = SequenceSession(model, quota_owner)
        if self._timer is None:
            self._remove_idle()
        return session

    def _remove(self, key: Hashable) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            self._quota.release(session.quota_owner)

    def _remove_idle(self) -> None:
        """Remove the sequences that are idle for too long; repeated by a timer."""
        oldest = time.monotonic() - self._idle_seconds
        for key, session in list(self._sessions.items()):
            if not session.waiting and session.last_used < oldest:
                self._remove(key)
        self._timer = None
        if self._sessions:
            loop = asyncio.get_running_loop()
            delay = min(CHECK_SECONDS, self._idle_seconds / 4)
            self._timer = loop.call_later(delay, self._remove_idle)


def _not_started() -> InvalidRequest:
    return InvalidRequest(
        "a sequence must specify the START flag on its first request: this one has not"
        " started, has ended, or was idle for too long"
    )
