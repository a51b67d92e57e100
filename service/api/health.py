"""Health checks for orchestrators, and metrics for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.api import playground as page
from service.api import schemas
from service.registry.registry import Registry
from service.telemetry.metrics import Metrics


def router(
    registry: Registry, metrics: Metrics | None, *, playground: bool
) -> APIRouter:
    """The routes for probes and metrics.

    Args:
        metrics: None: there is no `/metrics`.
        playground: serve it to browsers at `/`.
    """
    api = APIRouter(tags=["health"])
    dead: dict[int | str, dict[str, Any]] = {
        503: {"description": "No worker lives.", "model": schemas.Health}
    }
    unready: dict[int | str, dict[str, Any]] = {
        503: {"description": "Not ready; says why.", "model": schemas.NotReady}
    }
    liveness: dict[str, Any] = {
        "summary": "Check liveness",
        "response_model": schemas.Health,
        "responses": dead,
    }

    @api.get("/livez", **liveness)
    @api.get("/healthz", **liveness)
    async def live() -> JSONResponse:
        """Answer whether the service lives: restart it if this fails."""
        if registry.alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get("/", summary="Open the playground", responses=dead)
    async def root(request: Request) -> Response:
        """Return the page to browsers. For others this is `/livez`, with the service's
        name, which KServe's V1 clients expect here."""
        if playground and page.accepts_html(request):
            return page.page()
        if registry.alive:
            return JSONResponse(
                {"status": "alive", "name": "unrolled", "docs": "/docs"}
            )
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get(
        "/readyz",
        summary="Check readiness",
        response_model=schemas.Ready,
        responses=unready,
    )
    async def ready() -> JSONResponse:
        """Answer whether every model is ready: send requests only while this is 200."""
        if registry.ready:
            return JSONResponse({"status": "ready", "models": list(registry.models)})
        content = {"status": "not ready", "reasons": registry.not_ready_reasons()}
        return JSONResponse(content, 503, {"Retry-After": "1"})

    if metrics is None:
        return api

    @api.get(
        "/metrics",
        summary="Read the metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def read_metrics() -> Response:
        """Return the metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return api
