"""Health checks for orchestrators, and metrics for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.api import playground as page
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
    failing: dict[int | str, dict[str, Any]] = {
        503: {"description": "Not now; the body says why."}
    }

    @api.get("/livez", responses=failing)
    @api.get("/healthz", responses=failing)
    async def live() -> JSONResponse:
        """Liveness: the process must be restarted if this fails."""
        if registry.alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get("/", responses=failing)
    async def root(request: Request) -> Response:
        """The playground for browsers; for others, `/livez` and the service's name, which
        KServe's V1 clients expect here."""
        if playground and page.accepts_html(request):
            return page.page()
        if registry.alive:
            return JSONResponse(
                {"status": "alive", "name": "unrolled", "docs": "/docs"}
            )
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get("/readyz", responses=failing)
    async def ready() -> JSONResponse:
        """Readiness: every model is loaded and warmed up."""
        if registry.ready:
            return JSONResponse({"status": "ready", "models": list(registry.models)})
        content = {"status": "not ready", "reasons": registry.not_ready_reasons()}
        return JSONResponse(content, 503, {"Retry-After": "1"})

    if metrics is None:
        return api

    @api.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return api
