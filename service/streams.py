"""The streams that are open: each a sequence whose frames come as they happen.

A stream that waits costs the memory of its state. Its messages are computed in the
lanes of its model's schedulers, together with whatever else is there.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

from . import stream_codec
from .catalogue import Catalogue, Model
from .errors import (
    FieldError,
    InternalError,
    InvalidRequest,
    ServiceError,
    Stopping,
    TooManyStreams,
)
from .metrics import Metrics
from .predictor import Predictor
from .settings import Settings
from .state_tokens import BEGIN

log = logging.getLogger(__name__)

END_SECONDS = 1.0  # to tell a caller that it ends
LOOK_SECONDS = 1.0  # between looks for idle streams, at most
DONE, IDLE, STOPPING = "done", "idle", "stopping"  # why a stream ends

# The next message; an error in its place where it can't be read; None after the last.
Next = Callable[[], Awaitable[bytes | ServiceError | None]]
Tell = Callable[[bytes], Awaitable[None]]


class Unread(Exception):
    """The caller has not read what it was told for too long."""


class Stream:
    """One of them."""

    def __init__(
        self, streams: "Streams", model: Model, top_k: int | None, stream_id: str
    ):
        self.model = model
        self.messages = 0
        self.state = BEGIN
        self.since = time.monotonic()  # it waits for its caller; 0: it computes
        self._told = ""  # why it must end
        self._writes = False
        self._streams, self._top_k, self._id = streams, top_k, stream_id
        self._task: asyncio.Task[object] | None = None

    async def run(self, following: Next, tell: Tell) -> str:
        """Answer messages until there are no more, the caller says that it was the
        last or is idle for too long, or the service stops; why it ended.

        Raises:
            Unread: the caller does not read.
            Exception: what `following` and `tell` raise.
        """
        self._task = asyncio.current_task()
        try:
            await self._converse(following, tell)
        except asyncio.CancelledError:
            if not self._told or self._task is None or self._task.uncancel():
                raise
            if self._writes:
                raise Unread from None
        reason = self._told or DONE
        token = self.model.tokens.sign(self.state) if self.state.packed else None
        try:
            async with asyncio.timeout(END_SECONDS):
                await tell(stream_codec.end(reason, self.state.steps, token))
        except TimeoutError:
            raise Unread from None
        return reason

    async def _converse(self, following: Next, tell: Tell) -> None:
        ends = False
        while not (ends or self._told):
            self.since = time.monotonic()
            message = await following()
            if message is None:
                return
            self.since = 0
            line, ends = await self._answer(message)
            if line:
                self.since, self._writes = time.monotonic(), True
                await tell(line)
                self._writes = False

    async def _answer(self, message: bytes | ServiceError) -> tuple[bytes, bool]:
        self.messages += 1
        begun = time.perf_counter()
        try:
            if isinstance(message, ServiceError):
                raise message
            advance = self._streams.predictor.advance
            line, self.state, ends = await advance(
                self.model, self.state, message, self._top_k
            )
        except Exception as error:
            return self._refusal(error), False
        self.model.admission.metrics.stream_seconds.observe(time.perf_counter() - begun)
        return line, ends

    def _refusal(self, error: Exception) -> bytes:
        if not isinstance(error, ServiceError):
            log.exception("unhandled", extra={"request_id": self._id})
            error = InternalError("an error of the service; its log has the id")
        elif isinstance(error, InternalError):
            cause = error.__cause__
            log.error("failed", exc_info=cause, extra={"request_id": self._id})
        self._streams.metrics.refused.labels(error.slug).inc()
        return stream_codec.refusal(error, self.state.steps, self._id)

    def close(self) -> None:
        """It has ended, in whatever way."""
        self._streams.close(self)

    def end(self, reason: str) -> None:
        """Have it end: at once where it waits, else when it has answered."""
        waits = self.since and not self._told
        self._told = self._told or reason
        if waits and self._task is not None:
            self._task.cancel()


class Streams:
    """All of them, and their limits."""

    def __init__(
        self,
        catalogue: Catalogue,
        predictor: Predictor,
        settings: Settings,
        metrics: Metrics,
    ):
        self.predictor, self.metrics = predictor, metrics
        self._catalogue, self._settings = catalogue, settings
        self._open: set[Stream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def open(self, query: bytes, stream_id: str) -> Stream:
        """A new stream, as the query of its address has it; to be closed.

        Raises:
            InvalidRequest: an unknown parameter, or one that is no number.
            UnknownModel, NotReady, NotStreamable: no model that could answer.
            TooManyStreams, Stopping: not now.
        """
        if self._stopping:
            raise Stopping("the service is stopping", headers={"Retry-After": "1"})
        model, top_k = self._chosen(query)
        if len(self._open) >= self._settings.max_streams:
            limit = f"at most {self._settings.max_streams} streams are open at a time"
            raise TooManyStreams(limit, headers={"Retry-After": "10"})
        stream = Stream(self, model, top_k, stream_id)
        self._open.add(stream)
        self.metrics.open_streams.labels(model.metadata.name).inc()
        if self._timer is None:
            self._look()
        return stream

    def close(self, stream: Stream) -> None:
        """It has ended, in whatever way."""
        self._open.discard(stream)
        self.metrics.open_streams.labels(stream.model.metadata.name).dec()

    async def stop(self, seconds: float) -> None:
        """Tell every caller, with a state to go on from elsewhere, and open no more;
        return when all have gone, or after so many seconds."""
        self._stopping = True
        for stream in list(self._open):
            stream.end(STOPPING)
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def _chosen(self, query: bytes) -> tuple[Model, int | None]:
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        name, top_k = given.pop("model", ""), given.pop("top_k", None)
        wrong = []
        if given:
            wrong.append(FieldError("query", "has a parameter other than model, top_k"))
        if top_k is not None and not re.fullmatch("[1-9][0-9]{0,8}", top_k):
            wrong.append(FieldError("top_k", "must be a number of at least 1"))
        if not name:
            names = ", ".join(self._catalogue.streamable()) or "none"
            wrong.append(FieldError("model", f"is missing; there are: {names}"))
        if wrong:
            told = "; ".join(f"{fault.path} {fault.message}" for fault in wrong)
            raise InvalidRequest(told, wrong)
        model = self._catalogue.get(name)
        self._catalogue.check_streamable(model)
        return model, int(top_k) if top_k else None

    def _look(self) -> None:
        """End those that have been idle for too long, now and then."""
        limit = self._settings.stream_idle_seconds
        before = time.monotonic() - limit
        for stream in list(self._open):
            if 0 < stream.since < before:
                stream.end(IDLE)
        self._timer = None
        if self._open:
            loop = asyncio.get_running_loop()
            delay = min(LOOK_SECONDS, limit / 4)
            self._timer = loop.call_later(delay, self._look)
