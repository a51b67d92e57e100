"""Sequences that the service keeps under an id that their callers chose.

As Triton's sequence batcher has it: a first request with START makes one, each goes
on from where the last one ended, one with END is its last. Requests of one id are
computed one after another, in the order in which they came.
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

LOOK_SECONDS = 1.0  # between looks for idle ones, at most
MOST_WAITING = 64  # requests of one id


class SequenceSession:
    """One of them."""

    def __init__(self, model: Model, share: str):
        self.model, self.share = model, share
        self.state: State | None = None  # None: it hasn't begun, or has ended
        self.since = time.monotonic()  # it was last used
        self.waiting = 0  # requests
        self.turn = asyncio.Lock()


class SequenceSessions:
    """All of them, and their limits."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._quota = OwnerQuota(settings.max_streams, "sequences are kept")
        self._idle = settings.stream_idle_seconds
        self._kept: dict[Hashable, SequenceSession] = {}
        self._timer: asyncio.TimerHandle | None = None
        metrics.kept_sequences.set_function(lambda: len(self._kept))

    @asynccontextmanager
    async def turn(
        self,
        key: Hashable,
        model: Model,
        *,
        start: bool,
        end: bool,
        share: str = "",
    ) -> AsyncIterator[SequenceSession]:
        """A session with its state, to be replaced by the next one.

        Args:
            key: of the sequence: the owner of the API key, the model, and the id.
            share: as `OwnerQuota.acquire`, of one that starts.
            model: of a session that starts; one that goes on keeps its own.

        Raises:
            InvalidRequest: there is none to go on with, and it doesn't start.
            TooManyStreams: as many are kept as may be, in all or of this owner.
            Overloaded: too many of its requests wait.
        """
        session = self._find(key, model, start, share)
        if session.waiting >= MOST_WAITING:
            told = f"{MOST_WAITING} requests of this sequence wait"
            raise Overloaded(told, headers={"Retry-After": "1"})
        session.waiting += 1
        try:
            async with session.turn:
                before = session.model, session.state
                if start:
                    session.model, session.state = model, INITIAL_STATE
                if session.state is None:
                    raise _missing()
                try:
                    yield session
                except BaseException:
                    # What could not be computed changes nothing.
                    session.model, session.state = before
                    raise
                if end:
                    session.state = None
        finally:
            session.waiting -= 1
            session.since = time.monotonic()
            if session.state is None and not session.waiting:
                self._forget(key)

    def _find(
        self, key: Hashable, model: Model, start: bool, share: str
    ) -> SequenceSession:
        session = self._kept.get(key)
        if session is not None:
            return session
        if not start:
            raise _missing()
        self._quota.acquire(share)
        session = self._kept[key] = SequenceSession(model, share)
        if self._timer is None:
            self._look()
        return session

    def _forget(self, key: Hashable) -> None:
        session = self._kept.pop(key, None)
        if session is not None:
            self._quota.release(session.share)

    def _look(self) -> None:
        """Forget those that have been idle for too long, now and then."""
        before = time.monotonic() - self._idle
        for key, session in list(self._kept.items()):
            if not session.waiting and session.since < before:
                self._forget(key)
        self._timer = None
        if self._kept:
            loop = asyncio.get_running_loop()
            delay = min(LOOK_SECONDS, self._idle / 4)
            self._timer = loop.call_later(delay, self._look)


def _missing() -> InvalidRequest:
    return InvalidRequest(
        "a sequence must specify the START flag on its first request: it has not"
        " begun here, has ended, or was idle for too long"
    )
