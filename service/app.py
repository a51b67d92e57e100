"""The application: every part made once, and wired by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request

from . import engine, errors, examples
from .metrics import Metrics
from .predictor import Predictor
from .registry import LoadEngine, Registry
from .requests import Requests
from .routes import native, probes
from .settings import Settings

DESCRIPTION = """\
Class probabilities for sequences of any length, from recurrent networks.

`POST /classify` answers one class for each sequence, `POST /label` one for each
step. The examples below run as they stand.
"""


def create_app(
    settings: Settings,
    *,
    load_engine: LoadEngine = engine.load,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The ASGI application.

    Args:
        load_engine: makes the engine of a bundle.
        on_failure: called when a bundle is broken and must not be.
    """
    metrics = Metrics()
    registry = Registry(
        settings, metrics, load_engine=load_engine, on_failure=on_failure
    )
    predictor = Predictor(registry, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        registry.start()  # in the background: the port opens at once
        yield
        # In a thread: a load that is under way must not hold up the loop.
        await asyncio.to_thread(registry.close)
        predictor.close()

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
    app.state.registry = registry
    app.include_router(native.router(predictor, registry, settings))
    app.include_router(probes.router(registry, metrics))
    app.add_exception_handler(HTTPException, _refuse)
    app.add_middleware(Requests, metrics=metrics)
    app.openapi = examples.document(app.openapi, registry)  # type: ignore[method-assign]
    return app


def _refuse(request: Request, error: Exception) -> NoReturn:
    """What the framework refuses by itself, told as every other refusal."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers: dict[str, Any] = dict(getattr(error, "headers", None) or {})
    if status == 404:
        raise errors.NotFound("there is nothing at this path", headers=headers)
    if status == 405:
        allowed = headers.get("Allow") or headers.get("allow", "another")
        raise errors.MethodNotAllowed(f"use {allowed}", headers=headers)
    raise errors.InternalError(f"the framework refused with {status}")


def _version() -> str:
    try:
        return version("unrolled")
    except PackageNotFoundError:  # run from a checkout
        return "0.1.0"
