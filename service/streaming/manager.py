"""The streams that are open, and their limits."""

import asyncio
import math
import re
import time
from urllib.parse import parse_qsl

from service.callers.caller import Caller
from service.callers.owner_quota import OwnerQuota
from service.codecs.process import CodecProcesses, RequestDecoder
from service.errors import FieldError, InvalidRequest, Stopping
from service.registry.catalog import Catalog, Model
from service.settings import Settings
from service.streaming.handlers import AGED, IDLE, STOPPING
from service.streaming.stream import Stream
from service.telemetry.metrics import Metrics

LOOK_SECONDS = 1.0  # between looks for those that must end, at most


class Streams:
    """All of them, and their limits."""

    def __init__(
        self,
        catalog: Catalog,
        reader: RequestDecoder,
        elsewhere: CodecProcesses,
        settings: Settings,
        metrics: Metrics,
    ):
        self._catalog, self._settings = catalog, settings
        self._parts = reader, elsewhere, metrics
        self._opened = metrics.open_streams
        self._open: set[Stream] = set()
        self._quota = OwnerQuota(settings.max_streams, "streams are open")
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def open(self, query: bytes, stream_id: str, caller: Caller) -> Stream:
        """A new stream, as the query of its address has it; to be closed.

        Raises:
            InvalidRequest: an unknown parameter, or one that is no number.
            UnknownModel, NotReady, NotStreamable: no model that could answer.
            TooManyStreams, Stopping: not now.
        """
        if self._stopping:
            raise Stopping("the service is stopping", headers={"Retry-After": "1"})
        model, top_k = self._chosen(query)
        self._quota.acquire(caller.quota_owner)
        stream = Stream(model, top_k, stream_id, caller, *self._parts)
        self._open.add(stream)
        self._opened.labels(model.metadata.name).inc()
        if self._timer is None:
            self._look()
        return stream

    def close(self, stream: Stream) -> None:
        """It has ended, in whatever way."""
        self._opened.labels(stream.model.metadata.name).dec()
        self._open.discard(stream)
        self._quota.release(stream.caller.quota_owner)
        stream.close()

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
            names = ", ".join(self._catalog.streamable()) or "none"
            wrong.append(FieldError("model", f"is missing; there are: {names}"))
        if wrong:
            told = "; ".join(f"{fault.path} {fault.message}" for fault in wrong)
            raise InvalidRequest(told, wrong)
        model = self._catalog.get(name)
        self._catalog.check_streamable(model)
        return model, int(top_k) if top_k else None

    def _look(self) -> None:
        """End those that have been idle or open for too long, now and then."""
        idle = self._settings.stream_idle_seconds
        age = self._settings.stream_seconds or math.inf
        now = time.monotonic()
        for stream in list(self._open):
            if not stream.computes and stream.since < now - idle:
                stream.end(IDLE)
            elif stream.opened < now - age:
                stream.end(AGED)
        self._timer = None
        if self._open:
            loop = asyncio.get_running_loop()
            delay = min(LOOK_SECONDS, idle / 4, age / 4)
            self._timer = loop.call_later(delay, self._look)
