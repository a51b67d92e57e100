"""The ASGI application: creates every part once, and connects them by hand."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import errors
from service.api import health, models, openapi, playground, predict, stream
from service.api.load_shedding import LoadShedder
from service.api.stream import StreamRoute
from service.callers.memory_budget import MemoryBudget
from service.codecs.process import CodecProcesses
from service.compat.open_inference import OpenInference
from service.compat.open_inference_metadata import BatchingModes
from service.compat.repository import ModelRepository
from service.compat.router import error_app, error_response
from service.compat.sequences import SequenceSessions
from service.compat.tf_serving import TfServing
from service.http import cors
from service.http.auth import ApiKeyAuth
from service.http.body import BodyReader
from service.http.middleware import RawEndpoint, RequestMiddleware
from service.pool import spawn
from service.pool.pool import Pool
from service.pool.spawn import StartWorker
from service.registry.registry import Registry
from service.settings import Settings
from service.streaming.manager import StreamManager
from service.telemetry.metrics import Metrics
from service.telemetry.traces import Traces

log = logging.getLogger(__name__)

DESCRIPTION = """\
Class probabilities for sequences of any length, from recurrent networks.

`POST /classify` returns one class for each sequence, `POST /label` one for each step.
The examples below run as they stand. Clients of Triton, KServe and TensorFlow Serving
can use `/v2` and `/v1`.

Every error is a problem document (RFC 9457): `type` says its kind, `detail` what is wrong
and how to go on, and `errors` which fields.
"""
THREADS = 2  # besides the event loop's
NOT_FOUND = "this path does not exist"
_VERSIONED = ("/v", "/V")


class Service:
    """The ASGI application, and the parts that its server needs.

    The hot paths bypass FastAPI, whose work around an endpoint costs as much as to parse
    a body.
    """

    def __init__(
        self,
        api: FastAPI,
        middleware: Callable[..., RequestMiddleware],
        raw_endpoints: Mapping[str, RawEndpoint],
        stream_route: StreamRoute,
        compat: Mapping[str, ASGIApp],
        registry: Registry,
        metrics: Metrics,
        budget: MemoryBudget,
        shedder: LoadShedder,
        settings: Settings,
    ):
        """
        Args:
            middleware: wraps an app; takes the raw endpoints too.
            compat: apps of other servers' protocols, by the first part of their paths.
            budget: of the bytes buffered for all callers.
        """
        self.registry, self.metrics, self.budget = registry, metrics, budget
        self.streams, self.shedder = stream_route.streams, shedder
        self._api, self._raw_endpoints, self._compat = api, raw_endpoints, compat
        self._raw_app = middleware(api, raw_endpoints)
        self._stream_app = middleware(stream_route, {})
        self._stream_path = stream_route.path
        self._app = cors.with_cors(self._dispatch, settings)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._app(scope, receive, send)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "websocket":
            return self._stream_app(scope, receive, send)
        if scope["type"] == "http":
            path = scope["path"]
            if path[:2] in _VERSIONED:
                app = self._compat.get(path.split("/", 2)[1].lower())
                if app is not None:
                    return app(scope, receive, send)
            if scope["method"] == "POST":
                if path in self._raw_endpoints:
                    return self._raw_app(scope, receive, send)
                if path == self._stream_path:
                    return self._stream_app(scope, receive, send)
        return self._api(scope, receive, send)


def create_app(
    settings: Settings,
    *,
    start: StartWorker = spawn.process,
    on_failure: Callable[[], None] = lambda: None,
) -> Service:
    """The ASGI application.

    Args:
        start: starts a worker.
        on_failure: called if a bundle is broken that must not be.
    """
    log.info("starting", extra={"bundles": [str(path) for path in settings.folders]})
    metrics = Metrics()
    pool = Pool(settings, metrics, start)
    pool.start()  # first: the workers start while the rest is imported and created
    try:
        return _create_service(settings, metrics, pool, on_failure)
    except BaseException:
        pool.close()  # otherwise the exit would wait for its processes
        raise


def _create_service(
    settings: Settings, metrics: Metrics, pool: Pool, on_failure: Callable[[], None]
) -> Service:
    registry = Registry(settings, metrics, pool, on_failure=on_failure)
    codecs = CodecProcesses(settings)
    bodies = BodyReader(settings.max_body_bytes)
    auth = ApiKeyAuth(settings)
    budget = MemoryBudget(settings.buffer_bytes, metrics)
    traces = Traces.from_environment(_version())
    middleware = partial(
        RequestMiddleware,
        metrics=metrics,
        check=auth.check,
        budget=budget,
        traces=traces,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Compression, and the files that the framework reads, share a few threads: each
        # thread keeps some memory.
        executor = ThreadPoolExecutor(THREADS, "aside")
        asyncio.get_running_loop().set_default_executor(executor)
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await pool.attach()
        codecs.start()
        registry.start()  # in the background: the port opens at once
        yield
        # In a thread: a load in progress must not block the event loop.
        await asyncio.to_thread(registry.close)
        await asyncio.to_thread(codecs.close)
        if traces is not None:
            await asyncio.to_thread(traces.close)

    # The offline variant serves the scripts of /docs itself.
    api = (FastAPIOffline if settings.docs else FastAPI)(
        title="Unrolled",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    api.include_router(predict.router())
    api.include_router(models.router(registry, settings))
    api.include_router(stream.router())
    exported = metrics if settings.metrics else None
    api.include_router(
        health.router(registry, exported, playground=settings.playground)
    )
    if settings.playground:
        api.mount(playground.PATH, playground.Files())
    api.add_exception_handler(HTTPException, _raise_service_error)
    api.add_middleware(middleware, raw_endpoints={})
    api.openapi = openapi.complete(api.openapi, registry)  # type: ignore[method-assign]

    v1 = TfServing(registry, codecs, settings).router(bodies)
    sessions = SequenceSessions(settings, metrics)
    batching_modes = BatchingModes(settings.stream_idle_seconds)
    v2 = OpenInference(
        registry, codecs, sessions, batching_modes, settings, _version()
    ).router(bodies)
    ModelRepository(registry, batching_modes, settings).add_routes(v2)
    malformed = error_app(errors.InvalidRequest, f"Malformed request: {NOT_FOUND}")
    not_found = error_app(errors.NotFound, NOT_FOUND)
    return Service(
        api,
        middleware,
        predict.endpoints(registry, bodies, codecs, settings),
        StreamRoute(StreamManager(registry, codecs, settings, metrics), settings),
        {
            "v1": middleware(malformed, v1, error_response),
            "v2": middleware(not_found, v2, error_response),
        },
        registry,
        metrics,
        budget,
        LoadShedder(registry, auth, pool, metrics),
        settings,
    )


async def _raise_service_error(request: Request, error: Exception) -> NoReturn:
    """Turn the framework's own errors into the service's."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers: dict[str, Any] = dict(getattr(error, "headers", None) or {})
    if status == 404:
        raise errors.NotFound(NOT_FOUND, headers=headers)
    if status == 405:
        allowed = headers.get("Allow") or headers.get("allow", "another method")
        raise errors.MethodNotAllowed(f"use {allowed}", headers=headers)
    raise errors.InternalError(f"the framework refused with {status}")


def _version() -> str:
    try:
        return version("unrolled")
    except PackageNotFoundError:  # run from a checkout
        return "0.1.0"
