"""`GET /models`: the models in service, and the reports that came with them."""

import asyncio
import re
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Response

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service.api import examples, operations, schemas
from service.errors import NotFound
from service.registry.catalog import Catalog, Model
from service.settings import Settings

MEDIA_TYPES = {
    ".png": "image/png",
    ".md": "text/markdown; charset=utf-8",
    ".json": "application/json",
}
FILE: dict[int | str, dict[str, Any]] = {  # in OpenAPI
    200: {
        "description": "The file.",
        "content": {text.partition(";")[0]: {} for text in MEDIA_TYPES.values()},
    }
}
REPORT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_REPORT_BYTES = 16 * 2**20
# A bundle's author must not act in the name of our pages.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def router(catalog: Catalog, settings: Settings) -> APIRouter:
    """The routes for models and their reports."""
    api = APIRouter(tags=["models"])
    limits = {
        "sequences": settings.max_sequences,
        "steps": settings.max_steps,
        "numbers": settings.max_cells,
        "body_bytes": settings.max_body_bytes,
    }

    @api.get(
        "/models",
        summary="List the models and the limits of a request",
        response_model=schemas.Models,
        responses=operations.problems(),
    )
    async def models() -> dict[str, Any]:
        """Return every model in service, the errors of broken bundles, and the limits."""
        return {
            "models": [_summary(model, catalog) for model in catalog.models.values()],
            "broken": catalog.broken,
            "limits": limits,
        }

    @api.get(
        "/models/{name}",
        summary="Describe a model",
        response_model=schemas.Model,
        responses=operations.problems(404),
    )
    async def model(name: str) -> dict[str, Any]:
        """Return the inputs and outputs of a model, and how it was trained.

        The name may have a version or a label: `NAME@VERSION`, `NAME@LABEL`.
        """
        model = catalog.get(name)
        metadata = model.metadata
        try:
            example = await asyncio.to_thread(examples.request, metadata.name, model)
        except BundleError:  # its files are too large, or changed since it was loaded
            example = None
        plots = [path.name for path in _report(model) if path.suffix == ".png"]
        return _summary(model, catalog) | {
            "features": metadata.input.names,
            "kinds": model.columns,
            "example": example,
            "training": metadata.training.model_dump(),
            "card": f"/models/{name}/report/card.md",
            "plots": [f"/models/{name}/report/{plot}" for plot in plots],
        }

    @api.get(
        "/models/{name}/report/{file}",
        summary="Get a file of a model's report",
        response_class=Response,
        responses=FILE | operations.problems(404),
    )
    async def report(name: str, file: str) -> Response:
        """Return a plot, the metrics (metrics.json) or the card (card.md) of a model."""
        model = catalog.get(name)
        # Only files that the bundle lists: a name can't lead out of its folder.
        for path in _report(model):
            if path.name == file:
                try:
                    content = await asyncio.to_thread(
                        model.bundle.content, str(path), MAX_REPORT_BYTES
                    )
                except BundleError:  # removed or changed since it was loaded
                    break
                media_type = MEDIA_TYPES[path.suffix]
                return Response(content, media_type=media_type, headers=HEADERS)
        raise NotFound("the model's report has no such file")

    return api


def _summary(model: Model, catalog: Catalog) -> dict[str, Any]:
    metadata = model.metadata
    return {
        "name": metadata.name,
        "version": metadata.version,
        "versions": list(catalog.versions.get(metadata.name, {})),
        "labels": catalog.labels.get(metadata.name, {}),
        "task": metadata.task,
        "default": catalog.default(metadata.task, model.reads) is model,
        "engine": model.loaded.engine,
        "precision": model.loaded.precision,
        "engine_reason": model.loaded.reason,
        "digest": model.digest,
        "cell": metadata.cell,
        "layers": metadata.layers,
        "hidden": metadata.hidden,
        "bidirectional": metadata.bidirectional,
        "streamable": metadata.state_size > 0,
        "input": metadata.input.kind,
        "feature_count": metadata.input.features,
        "classes": metadata.classes,
        "longest_trained": metadata.training.longest,
    }


def _report(model: Model) -> list[PurePosixPath]:
    """The files of a model's report that may be served."""
    paths = map(PurePosixPath, sorted(model.metadata.files))
    folder = PurePosixPath(bundle.REPORT)
    return [
        path
        for path in paths
        if path.parent == folder
        and path.suffix in MEDIA_TYPES
        and REPORT_FILE.fullmatch(path.name)
    ]
