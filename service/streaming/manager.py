"""The open streams and their limits: number, idle time, age."""

import asyncio
import math
import re
import time
from urllib.parse import parse_qsl

from service.callers.caller import Caller
from service.callers.owner_quota import OwnerQuota
from service.codecs.process import CodecProcesses
from service.errors import FieldError, InvalidRequest, Stopping
from service.registry.catalog import Catalog, Model
from service.settings import Settings
from service.streaming.handlers import AGED, IDLE, STOPPING
from service.streaming.stream import Stream
from service.telemetry.metrics import Metrics

CHECK_SECONDS = 1.0  # between checks for idle and old streams, at most


class StreamManager:
    """Opens and closes streams, and ends those that are idle or too old."""

    def __init__(
        self,
        catalog: Catalog,
        codecs: CodecProcesses,
        settings: Settings,
        metrics: Metrics,
    ):
        self._catalog, self._settings = catalog, settings
        self._codecs, self._metrics = codecs, metrics
        self._open: set[Stream] = set()
        self._quota = OwnerQuota(settings.max_streams, "streams are open")
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def open(self, query: bytes, stream_id: str, caller: Caller) -> Stream:
        """Open a stream, which must be closed.

        Args:
            query: of the address: `model=NAME`, and perhaps `top_k=K`.

        Raises:
            InvalidRequest: a parameter is unknown, missing or not valid.
            UnknownModel, NotReady, NotStreamable: the model can't serve streams.
            TooManyStreams, Stopping: no stream can be opened now.
        """
        if self._stopping:
            raise Stopping("the service is stopping", headers={"Retry-After": "1"})
        model, top_k = self._parse(query)
        self._quota.acquire(caller.quota_owner)
        stream = Stream(model, top_k, stream_id, caller, self._codecs, self._metrics)
        self._open.add(stream)
        self._metrics.open_streams.labels(model.metadata.name).inc()
        if self._timer is None:
            self._check()
        return stream

    def close(self, stream: Stream) -> None:
        """The stream has ended."""
        self._metrics.open_streams.labels(stream.model.metadata.name).dec()
        self._open.discard(stream)
        self._quota.release(stream.caller.quota_owner)
        stream.close()

    async def stop(self, seconds: float) -> None:
        """End all streams, each with a token to resume from elsewhere, and open no more.
        Return when all have ended, or after so many seconds."""
        self._stopping = True
        for stream in list(self._open):
            stream.end(STOPPING)
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _parse(self, query: bytes) -> tuple[Model, int | None]:
        parameters = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        name, top_k = parameters.pop("model", ""), parameters.pop("top_k", None)
        errors = []
        if parameters:
            message = "has a parameter other than model, top_k"
            errors.append(FieldError("query", message))
        if top_k is not None and not re.fullmatch("[1-9][0-9]{0,8}", top_k):
            errors.append(FieldError("top_k", "must be a number of at least 1"))
        if not name:
            names = ", ".join(self._catalog.streamable()) or "none"
            message = f"is missing; there are: {names}"
            errors.append(FieldError("model", message))
        if errors:
            detail = "; ".join(f"{error.path} {error.message}" for error in errors)
            raise InvalidRequest(detail, errors)
        model = self._catalog.get(name)
        self._catalog.check_streamable(model)
        return model, int(top_k) if top_k else None

    def _check(self) -> None:
        """End streams that have been idle or open for too long."""
        idle_seconds = self._settings.stream_idle_seconds
        max_seconds = self._settings.stream_seconds or math.inf
        now = time.monotonic()
        for stream in list(self._open):
            if not stream.busy and stream.last_active < now - idle_seconds:
                stream.end(IDLE)
            elif stream.opened < now - max_seconds:
                stream.end(AGED)
        self._timer = None
        if self._open:
            loop = asyncio.get_running_loop()
            delay = min(CHECK_SECONDS, idle_seconds / 4, max_seconds / 4)
            self._timer = loop.call_later(delay, self._check)
