"""`POST /classify` and `POST /label`: choose the model, parse, admit, await, encode."""

import time
from typing import Any

from fastapi import APIRouter
from starlette.types import Receive, Scope

from service.api import operations
from service.callers.caller import caller_of
from service.codecs import fast_json, native
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import CodecProcesses, RequestDecoder
from service.errors import NotReady, WrongFeatureCount, list_names
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines, requested_deadline
from service.http.middleware import Headers, RawEndpoint
from service.registry.catalog import TASKS, Catalog
from service.registry.state_tokens import State
from service.settings import Settings
from service.telemetry import server_timing

JSON = "application/json"


class PredictEndpoint:
    """The endpoint of one task. It is outside FastAPI, whose work around an endpoint costs
    as much as to parse the body."""

    def __init__(
        self,
        task: str,
        catalog: Catalog,
        bodies: BodyReader,
        deadlines: RequestDeadlines,
        codecs: CodecProcesses,
    ):
        self.path, self._task = f"/{task}", task
        self._catalog, self._bodies = catalog, bodies
        self._deadlines, self._codecs = deadlines, codecs

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        """The headers and the JSON body of the response.

        Raises:
            ServiceError: the request is refused.
            ClientDisconnect: the client has gone; what waits is dropped.
        """
        deadline, caller = requested_deadline(scope), caller_of(scope)
        decompress = await self._bodies.read(scope, receive, JSON)
        with self._deadlines.enforce(scope, receive, deadline) as deadline:
            body = await decompress()
            started = time.perf_counter()

            # Choose the model, by the name that the bytes show. Under overload this
            # refuses most requests before they are parsed, which would cost time that
            # the workers need.
            name = fast_json.peek_model_name(body)
            model = self._catalog.find(name, self._task)
            if model is not None:
                model.admission.check_room(deadline, caller.id)

            # Parse: a small body here, a large one in another process.
            features = self._catalog.features[self._task]
            try:
                request = await self._codecs.decode(
                    caller.id, RequestDecoder.decode_request, body, features
                )
            except WrongFeatureCount as error:
                error.detail = _name_models(error, self._catalog, self._task)
                raise
            if model is None or request.model != name:  # unknown, or spelt with escapes
                model = self._catalog.choose(request.model, self._task)
            metadata, sequences = model.metadata, request.sequences
            if not sequences or sequences[0].shape[1] != metadata.input.features:
                detail = "the model was loaded while the request was parsed"
                raise NotReady(detail, headers={"Retry-After": "1"})
            steps = list(map(len, sequences))
            model.admission.wait_estimate.observe_body(len(body), sum(steps))
            del body  # the frames take its place
            tokens = request.states or [None] * len(sequences)
            if request.return_state or any(token is not None for token in tokens):
                self._catalog.check_streamable(model)
            before = model.tokens.verify_all(tokens, caller.owner)
            native.check_response_size(metadata, len(steps), sum(steps), request.top_k)

            # Admit, and await the workers' results.
            admitted = await model.admission.compute(
                sequences,
                [state.packed for state in before],
                caller,
                deadline=deadline,
                return_state=request.return_state,
            )
            results = admitted.future.result()

            # Encode.
            computed = time.perf_counter()
            extras: list[dict[str, Any]] = []
            if request.return_state:
                extras = [
                    {"steps": s.steps, "state": model.tokens.sign(s, caller.owner)}
                    for s in map(State.after, before, steps, admitted.states)
                ]
            size = NUMBER_BYTES * sum(result.size for result in results)
            size += sum(len(extra["state"]) for extra in extras)
            text = await self._codecs.run_if_large(
                caller.id, size, native.encode, metadata, results, request.top_k, extras
            )
            caller.reservation.resize(len(text))
            encode_seconds = time.perf_counter() - computed
            seconds = model.admission.record(
                admitted, admitted.submitted - started, encode_seconds, caller
            )
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(text)),
                server_timing.header(*seconds),
            ]
            return headers, text


def endpoints(
    catalog: Catalog, bodies: BodyReader, codecs: CodecProcesses, settings: Settings
) -> dict[str, RawEndpoint]:
    """The endpoints of all tasks, by path."""
    deadlines = RequestDeadlines(settings.request_seconds)
    return {
        f"/{task}": PredictEndpoint(task, catalog, bodies, deadlines, codecs)
        for task in TASKS
    }


def router() -> APIRouter:
    """The routes, declared for OpenAPI and for other methods; `PredictEndpoint` answers."""
    api = APIRouter()

    @api.post(
        "/classify", summary="Classify sequences", **operations.prediction("classify")
    )
    def classify() -> None:
        """Return one class for each sequence, with its probability.

        Without `model` the default model of the task answers. `limits` in `GET /models`
        says how large a request may be. It is safe to send again after a 503.
        """

    @api.post(
        "/label",
        summary="Label each step of sequences",
        **operations.prediction("label"),
    )
    def label() -> None:
        """Return one class for each step of each sequence, with its probabilities.

        The request is that of `POST /classify`, with a model for labels.
        """

    return api


def _name_models(error: WrongFeatureCount, catalog: Catalog, task: str) -> str:
    """The detail of an error about a number of features: the model that was chosen, and
    the models that take so many."""
    chosen = catalog.find(error.reference, task)
    if chosen is None:  # unloaded meanwhile
        return error.detail
    name, metadata = chosen.metadata.name, chosen.metadata
    if error.reference is None:
        name += " (the default: the request names no model)"
    parts = []
    for other in sorted(TASKS, key=task.__ne__):  # first the task of the request
        names = [
            name
            for name, model in catalog.models.items()
            if model.metadata.task == other
            and model.metadata.input.features == error.features
        ]
        if names:
            path = f" (POST /{other})" if other != task else ""
            parts.append(f"{list_names(names)}{path}")
    return (
        f"{name} takes {metadata.input.features} features;"
        f" models that take {error.features}: {'; '.join(parts) or 'none'}"
    )
