"""The application: every part made once, and wired by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service import errors
from service.api import health, native, openapi, playground, stream
from service.api.load_shedding import Shedding
from service.api.predict import Predictor
from service.api.stream import StreamRoute
from service.callers.memory_budget import MemoryBudget
from service.codecs.process import CodecProcesses, RequestDecoder
from service.compat.open_inference import OpenInference
from service.compat.open_inference_metadata import BatchingModes
from service.compat.repository import ModelRepository
from service.compat.router import error_app, error_response
from service.compat.sequences import SequenceSessions
from service.compat.tf_serving import TfServing
from service.http import cors
from service.http.auth import ApiKeyAuth
from service.http.body import THREADS, BodyReader
from service.http.middleware import RawEndpoint, RequestMiddleware
from service.http.traces import Traces
from service.pool import spawn
from service.pool.pool import Pool
from service.pool.spawn import StartWorker
from service.registry.registry import Registry
from service.settings import Settings
from service.streaming.manager import Streams
from service.telemetry.metrics import Metrics

DESCRIPTION = """\
Class probabilities for sequences of any length, from recurrent networks.

`POST /classify` answers one class for each sequence, `POST /label` one for each
step. The examples below run as they stand. Clients of Triton, KServe and TensorFlow
Serving are answered at `/v2` and `/v1`.
"""


NOTHING = "there is nothing at this path"
_VERSIONED = ("/v", "/V")


class Service:
    """The ASGI application, and what it serves.

    The paths in `direct` go past the framework: what FastAPI does around an endpoint
    costs as much as to parse a body.
    """

    def __init__(
        self,
        api: FastAPI,
        direct: Mapping[str, RawEndpoint],
        stream: StreamRoute,
        dialects: Mapping[str, RequestMiddleware],
        metrics: Metrics,
        registry: Registry,
        settings: Settings,
        check: Callable[[Scope], None],
        shed: Callable[[bytes, int], bytes | None],
        budget: MemoryBudget,
        traces: Traces | None,
    ):
        """
        Args:
            dialects: by the first part of their paths.
            check: as `RequestMiddleware` takes it.
            shed: as `ConnectionLimiter` takes it.
            budget: of the bytes held for all callers.
        """
        self.api, self.registry, self.metrics = api, registry, metrics
        self.budget = budget
        self.drain, self.stopping = stream.streams.stop, registry.drain
        self.shed = shed
        self._direct, self._stream_path = direct, stream.path
        around: dict[str, Any] = {"check": check, "budget": budget, "traces": traces}
        self._front = RequestMiddleware(api, metrics, direct, **around)
        self._stream_front = RequestMiddleware(stream, metrics, {}, **around)
        self._dialects = dialects
        self._entry = cors.with_cors(self._dispatch, settings)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._entry(scope, receive, send)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "websocket":
            return self._stream_front(scope, receive, send)
        if scope["type"] == "http":
            path = scope["path"]
            if path[:2] in _VERSIONED:
                dialect = self._dialects.get(path.split("/", 2)[1].lower())
                if dialect is not None:
                    return dialect(scope, receive, send)
            if scope["method"] == "POST":
                if path in self._direct:
                    return self._front(scope, receive, send)
                if path == self._stream_path:
                    return self._stream_front(scope, receive, send)
        return self.api(scope, receive, send)


def create_app(
    settings: Settings,
    *,
    start: StartWorker = spawn.process,
    on_failure: Callable[[], None] = lambda: None,
) -> Service:
    """The ASGI application.

    Args:
        start: starts a worker.
        on_failure: called when a bundle is broken and must not be.
    """
    metrics = Metrics()
    pool = Pool(settings, metrics, start)
    pool.start()  # first: while a worker starts, the rest of us is imported and made
    try:
        return _wired(settings, metrics, pool, on_failure)
    except BaseException:
        pool.close()  # else its processes would be waited for
        raise


def _wired(
    settings: Settings, metrics: Metrics, pool: Pool, on_failure: Callable[[], None]
) -> Service:
    registry = Registry(settings, metrics, pool, on_failure=on_failure)
    reader, elsewhere = RequestDecoder(settings.limits), CodecProcesses(settings)
    predictor = Predictor(registry, reader, elsewhere)
    streams = Streams(registry, reader, elsewhere, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is compressed, and what the framework reads of files, waits for few
        # threads, not for one of each of many: each keeps some memory.
        aside = ThreadPoolExecutor(THREADS, "aside")
        asyncio.get_running_loop().set_default_executor(aside)
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await pool.attach()
        elsewhere.start()  # what large bodies need
        registry.start()  # in the background: the port opens at once
        yield
        # In a thread: a load that is under way must not hold up the loop.
        await asyncio.to_thread(registry.close)
        await asyncio.to_thread(elsewhere.close)
        if traced is not None:
            await asyncio.to_thread(traced.close)

    # Its pages bring their scripts along: /docs works without a network.
    kind = FastAPIOffline if settings.docs else FastAPI
    app = kind(
        title="Unrolled",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    app.include_router(native.router(registry))
    app.include_router(stream.router())
    figures = metrics if settings.metrics else None
    app.include_router(health.router(registry, figures, playground=settings.playground))
    if settings.playground:
        app.mount(playground.PATH, playground.Files())
    app.add_exception_handler(HTTPException, _refuse)
    gate = ApiKeyAuth(settings)
    traced = Traces.from_environment(_version())
    check = gate.check
    budget = MemoryBudget(settings.buffer_bytes, metrics)
    around: dict[str, Any] = {"check": check, "budget": budget, "traces": traced}
    app.add_middleware(RequestMiddleware, metrics=metrics, direct={}, **around)
    app.openapi = openapi.document(app.openapi, registry)  # type: ignore[method-assign]
    bodies = BodyReader(settings.max_body_bytes)
    direct = native.predictions(predictor, bodies, settings)
    sessions = SequenceSessions(settings, metrics)
    v1 = TfServing(registry, predictor, reader, elsewhere, settings).paths(bodies)
    batching_modes = BatchingModes(settings.stream_idle_seconds)
    v2 = OpenInference(
        registry, predictor, elsewhere, sessions, batching_modes, settings, _version()
    ).paths(bodies)
    ModelRepository(registry, batching_modes, settings).add(v2)
    malformed = error_app(errors.InvalidRequest, f"Malformed request: {NOTHING}")
    nothing = error_app(errors.NotFound, NOTHING)
    dialects = {
        "v1": RequestMiddleware(malformed, metrics, v1, error_response, **around),
        "v2": RequestMiddleware(nothing, metrics, v2, error_response, **around),
    }
    stream_route = StreamRoute(streams, settings)
    shed = Shedding(registry, gate, metrics).answer
    return Service(
        app,
        direct,
        stream_route,
        dialects,
        metrics,
        registry,
        settings,
        check,
        shed,
        budget,
        traced,
    )


async def _refuse(request: Request, error: Exception) -> NoReturn:
    """What the framework refuses by itself, told as every other refusal."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers: dict[str, Any] = dict(getattr(error, "headers", None) or {})
    if status == 404:
        raise errors.NotFound(NOTHING, headers=headers)
    if status == 405:
        allowed = headers.get("Allow") or headers.get("allow", "another")
        raise errors.MethodNotAllowed(f"use {allowed}", headers=headers)
    raise errors.InternalError(f"the framework refused with {status}")


def _version() -> str:
    try:
        return version("unrolled")
    except PackageNotFoundError:  # run from a checkout
        return "0.1.0"
