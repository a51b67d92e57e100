"""Health for orchestrators, metrics for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from ..metrics import Metrics
from ..registry import Registry


def router(registry: Registry, metrics: Metrics | None) -> APIRouter:
    """The routes, over the parts that they ask."""
    api = APIRouter(tags=["health"])
    failing: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; why."}}

    @api.get("/livez", responses=failing)
    @api.get("/healthz", responses=failing)
    async def live() -> JSONResponse:
        """Whether the process works; failing means that it must be restarted."""
        if registry.alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get("/", responses=failing)
    async def root() -> JSONResponse:
        """What is here; as `/livez`, for clients of KServe's V1."""
        if registry.alive:
            return JSONResponse(
                {"status": "alive", "name": "unrolled", "docs": "/docs"}
            )
        return JSONResponse({"status": "no worker lives"}, 503)

    @api.get("/readyz", responses=failing)
    async def ready() -> JSONResponse:
        """Whether every model is loaded and warm."""
        if registry.ready:
            return JSONResponse({"status": "ready", "models": list(registry.models)})
        content = {"status": "not ready", "reasons": registry.reasons()}
        return JSONResponse(content, 503, {"Retry-After": "1"})

    if metrics is None:
        return api

    @api.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Figures in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return api
