"""`POST /classify` and `POST /label`: choose the model, parse, admit, await, encode."""

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.types import Receive, Scope

from service.api import operations
from service.callers.caller import Caller, caller_of
from service.codecs import fast_json, native, text
from service.codecs.fast_json import PredictRequest
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import CodecProcesses, RequestDecoder
from service.codecs.validation import invalid_field
from service.errors import NotReady, WrongFeatureCount, list_names
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines, requested_deadline
from service.http.middleware import Headers, RawEndpoint
from service.registry.catalog import TASKS, Catalog, Model, TaskModels
from service.registry.state_tokens import State
from service.settings import Settings
from service.telemetry import server_timing

JSON = "application/json"
TOKEN_BYTES = 64  # of JSON for a token of a text, about
SPAN_BYTES = 256  # of a span; and of JSON that takes as long as to find that of a token


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
        body = await self._bodies.read(scope, receive, JSON)
        with self._deadlines.enforce(scope, receive, deadline) as deadline:
            started = time.perf_counter()

            # Choose the model, by what the bytes show. Under overload this refuses most
            # requests before they are parsed, which would cost time that the workers
            # need. All of a request is of the models that are served now.
            models = self._catalog.tasks[self._task]
            seen = fast_json.peek(body) if isinstance(body, bytes) else ("", "")
            model = models.find(*seen)
            if model is not None:
                model.admission.check_room(deadline, caller.id)

            # Parse: a small body here, a large one in another process.
            try:
                request = await self._codecs.decode(
                    caller.id, RequestDecoder.decode_request, body, models.inputs
                )
            except WrongFeatureCount as error:
                error.detail = _name_models(error, models, self._catalog, self._task)
                raise
            reads = request.reads
            model = models.find(request.model, reads)
            if model is None:
                self._catalog.choose(request.model, self._task, reads)  # says why
                detail = "the model was loaded while the request was parsed"
                raise NotReady(detail, headers={"Retry-After": "1"})
            del models  # a request keeps no other model than its own
            check_kind(model, reads)
            if request.spans and self._task != "label":
                raise invalid_field("spans", "are of POST /label")
            metadata = model.metadata
            count = len(request.sequences or request.tokens or request.records or ())
            tokens = request.states or [None] * count
            if request.return_state or any(token is not None for token in tokens):
                self._catalog.check_streamable(model)
            before = model.tokens.verify_all(tokens, caller.owner)
            sequences, times = await model.encode(request, before)
            steps = list(map(len, sequences))
            if isinstance(body, bytes):
                model.admission.wait_estimate.observe_body(len(body), sum(steps))
            del body  # the frames take its place
            step_bytes = TOKEN_BYTES * bool(request.texts)
            step_bytes += SPAN_BYTES * request.spans
            native.check_response_size(
                metadata, len(steps), sum(steps), request.top_k, step_bytes
            )

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
            extras = await self._text_fields(model, request, results, caller)
            if request.return_state:
                after = map(State.after, before, steps, admitted.states, times)
                extras = extras or [{} for _ in steps]
                for extra, s in zip(extras, after, strict=True):
                    token = model.tokens.sign(s, caller.owner)
                    extra |= {"steps": s.steps, "state": token}
            size = NUMBER_BYTES * sum(result.size for result in results)
            size += sum(len(extra.get("state", "")) for extra in extras)
            size += step_bytes * sum(steps) if extras else 0
            content = await self._codecs.run_if_large(
                caller.id, size, native.encode, metadata, results, request.top_k, extras
            )
            caller.reservation.resize(len(content))
            encode_seconds = time.perf_counter() - computed
            seconds = model.admission.record(
                admitted, admitted.submitted - started, encode_seconds, caller
            )
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(content)),
                server_timing.header(*seconds),
            ]
            return headers, content

    async def _text_fields(
        self,
        model: Model,
        request: PredictRequest,
        results: list[np.ndarray],
        caller: Caller,
    ) -> list[dict[str, Any]]:
        """The fields of each prediction on its tokens and spans; [] if there are none."""
        tokens, vocabulary = request.tokens, model.vocabulary
        if tokens is None or vocabulary is None or model.metadata.task != "label":
            return []
        extras: list[dict[str, Any]] = [{} for _ in tokens]
        texts: list[str | None] = [None] * len(tokens)
        if request.texts:
            texts = [*request.texts]
        since = 0  # tokens since the last turn of other requests
        for extra, row, content in zip(extras, tokens, texts, strict=True):
            if content is not None and vocabulary.kind == "tokens":
                since += len(row)
                if since > text.AT_ONCE:
                    await asyncio.sleep(0)
                    since = 0
                extra["tokens"] = text.token_fields(vocabulary, row, content)
        if request.spans:
            spans = await self._codecs.run_if_large(
                caller.id,
                SPAN_BYTES * sum(map(len, tokens)),
                text.all_spans,
                model.metadata.classes,
                results,
                tokens,
                texts,
            )
            for extra, values in zip(extras, spans, strict=True):
                extra["spans"] = values
        return extras


def check_kind(model: Model, reads: str) -> None:
    """Refuse the input of another kind than the model reads.

    Args:
        reads: frames, text, or records.

    Raises:
        InvalidRequest: names what the model takes.
    """
    if model.reads == reads:
        return
    takes = {
        "frames": f"sequences of {model.metadata.input.features} features a step",
        "tokens": "texts or tokens",
        "characters": "texts",
        "records": f"records with {list_names(model.columns or ())}",
    }[model.metadata.input.kind]
    field = {"frames": "sequences", "text": "texts", "records": "records"}[reads]
    raise invalid_field(field, f"{model.metadata.name} takes {takes}")


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


def _name_models(
    error: WrongFeatureCount, models: TaskModels, catalog: Catalog, task: str
) -> str:
    """The detail of an error about a number of features: the model that was chosen, and
    the models that take so many."""
    chosen = models.find(error.reference, "frames")
    if chosen is None:
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
            and model.reads == "frames"
            and model.metadata.input.features == error.features
        ]
        if names:
            path = f" (POST /{other})" if other != task else ""
            parts.append(f"{list_names(names)}{path}")
    return (
        f"{name} takes {metadata.input.features} features;"
        f" models that take {error.features}: {'; '.join(parts) or 'none'}"
    )
