"""The service's own API: classify, label, and the models."""

import asyncio
import re
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Response
from starlette.types import Receive, Scope

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service.api import schemas
from service.api.predict import Predictor
from service.callers.caller import caller_of
from service.errors import NotFound
from service.http import deadlines
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines
from service.http.middleware import Headers, RawEndpoint
from service.registry.catalog import Catalog, Model
from service.settings import Settings

JSON = "application/json"
REPORTS = {".png": "image/png", ".md": "text/markdown; charset=utf-8", ".json": JSON}
REPORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REPORT_BYTES = 16 * 2**20
# Whoever wrote a bundle is not to act in the name of our pages.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


class Prediction:
    """`POST /classify` or `POST /label`, answered past the framework: what that does
    around an endpoint costs as much as to parse the body."""

    def __init__(
        self,
        predictor: Predictor,
        waiting: RequestDeadlines,
        bodies: BodyReader,
        task: str,
    ):
        self.path, self._task = f"/{task}", task
        self._predictor, self._callers, self._bodies = predictor, waiting, bodies

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        asked, caller = deadlines.requested_deadline(scope), caller_of(scope)
        body = await self._bodies.read(scope, receive, JSON)
        with self._callers.enforce(scope, receive, asked) as until:
            answer, timing = await self._predictor.predict(
                await body(), self._task, caller, until
            )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
            (b"server-timing", timing),
        ]
        return headers, answer


def predictions(
    predictor: Predictor, bodies: BodyReader, settings: Settings
) -> dict[str, RawEndpoint]:
    """The paths whose POST goes past the framework."""
    waiting = RequestDeadlines(settings.request_seconds)
    made = [
        Prediction(predictor, waiting, bodies, task) for task in ("classify", "label")
    ]
    return {one.path: one for one in made}


def router(catalog: Catalog) -> APIRouter:
    """The routes, over the parts that they use."""
    api = APIRouter()

    # Declared for OpenAPI and for other methods; `predictions` answers.
    @api.post("/classify", **schemas.operation("classify"))
    def classify() -> None:
        """One class for each sequence, with its probability."""

    @api.post("/label", **schemas.operation("label"))
    def label() -> None:
        """One class for each step of each sequence."""

    @api.get("/models", response_model=schemas.Models, tags=["models"])
    async def models() -> dict[str, Any]:
        """Every model in service, and those whose bundle is broken."""
        return {
            "models": [_summary(model, catalog) for model in catalog.models.values()],
            "broken": catalog.broken,
        }

    @api.get(
        "/models/{name}",
        response_model=schemas.Model,
        responses=schemas.problems(404, 503),
        tags=["models"],
    )
    async def model(name: str) -> dict[str, Any]:
        """What a model takes and gives, and how it was trained."""
        found = catalog.get(name)
        metadata = found.metadata
        plots = [path.name for path in _report(found) if path.suffix == ".png"]
        return _summary(found, catalog) | {
            "features": metadata.input.names,
            "training": metadata.training.model_dump(),
            "card": f"/models/{name}/report/card.md",
            "plots": [f"/models/{name}/report/{plot}" for plot in plots],
        }

    @api.get(
        "/models/{name}/report/{file}",
        response_class=Response,
        responses=schemas.problems(404, 503),
        tags=["models"],
    )
    async def report(name: str, file: str) -> Response:
        """A plot, the figures (metrics.json) or the card (card.md) of a model."""
        found = catalog.get(name)
        # Only what the bundle lists: a name can't lead out of its folder.
        for path in _report(found):
            if path.name == file:
                try:
                    content = await asyncio.to_thread(
                        found.bundle.content, str(path), REPORT_BYTES
                    )
                except BundleError:  # removed or changed since it was loaded
                    break
                kind = REPORTS[path.suffix]
                return Response(content, media_type=kind, headers=POLICY)
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
        "default": catalog.default(metadata.task) is model,
        "engine": model.loaded.engine,
        "precision": model.loaded.precision,
        "engine_reason": model.loaded.reason,
        "digest": model.digest,
        "cell": metadata.cell,
        "layers": metadata.layers,
        "hidden": metadata.hidden,
        "bidirectional": metadata.bidirectional,
        "streamable": metadata.state_size > 0,
        "feature_count": metadata.input.features,
        "classes": metadata.classes,
        "longest_trained": metadata.training.longest,
    }


def _report(model: Model) -> list[PurePosixPath]:
    paths = map(PurePosixPath, sorted(model.metadata.files))
    folder = PurePosixPath(bundle.REPORT)
    return [
        path
        for path in paths
        if path.parent == folder
        and path.suffix in REPORTS
        and REPORT.fullmatch(path.name)
    ]
