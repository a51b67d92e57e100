"""The Open Inference Protocol v2 over HTTP, with Triton's extensions."""

import math
import time

from service import errors
from service.codecs import open_inference
from service.codecs.compression import CompressedBody
from service.codecs.open_inference import InferRequest
from service.codecs.process import CodecProcesses
from service.codecs.validation import invalid_field
from service.compat import open_inference_metadata
from service.compat.open_inference_metadata import BatchingModes
from service.compat.router import (
    Request,
    Response,
    Router,
    json_response,
)
from service.compat.sequences import SequenceSessions
from service.errors import InvalidRequest
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines
from service.pool.admission import AdmittedRequest
from service.registry.catalog import Model
from service.registry.registry import Registry
from service.settings import Settings

MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]{1,9}))?"
PATH = "/v2/models/{model}"
JSON_LENGTH = b"inference-header-content-length"
MAX_TIMEOUT = 2**64 - 1  # microseconds
MAX_ID_CHARACTERS = 256  # of a sequence


class OpenInference:
    """The routes of `/v2`."""

    def __init__(
        self,
        registry: Registry,
        codecs: CodecProcesses,
        sessions: SequenceSessions,
        batching_modes: BatchingModes,
        settings: Settings,
        version: str,
    ):
        """
        Args:
            version: of the service.
        """
        self._registry, self._codecs, self._sessions = registry, codecs, sessions
        self._batching_modes = batching_modes
        self._settings, self._version = settings, version
        self._limits = settings.limits
        self._deadlines = RequestDeadlines(settings.request_seconds)

    def router(self, body_reader: BodyReader) -> Router:
        router = Router(body_reader)
        # Routes are tried in turn: the most used one is first.
        router.add(f"{PATH}/infer", f"{MODEL}/infer", post=self._infer)
        router.add("/v2", "/v2/?", get=self._server)
        router.add("/v2/health/live", "/v2/health/live/?", get=self._live)
        router.add("/v2/health/ready", "/v2/health/ready/?", get=self._ready)
        router.add("/v2/models", "/v2/models/?", get=self._models)
        router.add("/v2/models/stats", "/v2/models/stats", get=self._statistics)
        router.add(f"{PATH}/ready", f"{MODEL}/ready", get=self._model_ready)
        router.add(f"{PATH}/config", f"{MODEL}/config", get=self._config)
        router.add(f"{PATH}/stats", f"{MODEL}/stats", get=self._statistics)
        router.add(PATH, f"{MODEL}/?", get=self._metadata)
        return router

    async def _server(self, request: Request) -> Response:
        extensions: tuple[str, ...] = open_inference_metadata.EXTENSIONS
        if self._settings.admin:
            extensions += open_inference_metadata.ADMIN_EXTENSIONS
        return json_response(
            {
                "name": self._settings.server_name,
                "version": self._version,
                "extensions": extensions,
            }
        )

    async def _live(self, request: Request) -> Response:
        if not self._registry.alive:
            raise errors.NotReady("no worker is running")
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        if not self._registry.ready:
            reasons = "; ".join(self._registry.not_ready_reasons())
            raise errors.NotReady(reasons, headers={"Retry-After": "1"})
        return json_response({"ready": True, "live": True})

    async def _models(self, request: Request) -> Response:
        return json_response({"models": list(self._registry.models)})

    async def _model_ready(self, request: Request) -> Response:
        name = self._model(request).metadata.name
        return json_response({"name": name, "ready": True})

    async def _metadata(self, request: Request) -> Response:
        model = self._model(request)
        versions = list(self._registry.versions.get(model.metadata.name, {}))
        return json_response(open_inference_metadata.metadata(model, versions))

    async def _config(self, request: Request) -> Response:
        model, settings = self._model(request), self._settings
        config = open_inference_metadata.config(
            model, settings.max_sequences, settings.keep_versions
        )
        return json_response(config | self._batching_modes.config(model.metadata.name))

    async def _statistics(self, request: Request) -> Response:
        if "model" in request.path_params:
            models = [self._model(request)]
        else:
            models = [m for v in self._registry.versions.values() for m in v.values()]
        statistics = [
            m.admission.statistics.as_dict(m.metadata.name, m.metadata.version)
            for m in models
        ]
        return json_response({"model_stats": statistics})

    async def _infer(self, request: Request) -> Response:
        model, caller = self._model(request), request.caller
        body = await request.body()
        json_bytes = _json_bytes(request.header(JSON_LENGTH))
        scope = self._deadlines.enforce(
            request.scope, request.receive, request.deadline
        )
        with scope as deadline:
            begun = time.perf_counter()
            model.admission.check_room(deadline, caller.id)
            if isinstance(body, CompressedBody):
                size = body.limit
            elif model.reads == "frames" and json_bytes is not None:
                size = json_bytes  # binary tensors of numbers take no time to decode
            else:
                size = len(body)
            decoded = await self._codecs.run_if_large(
                caller.id,
                size,
                open_inference.decode,
                body,
                json_bytes,
                model.metadata.input.features,
                self._limits,
                *model.decoding,
            )
            del body
            decode_seconds = time.perf_counter() - begun
            open_inference.check_response_size(model.metadata, decoded)
            deadline = scope.shorten(begun + _timeout(decoded))
            model, computed = await self._compute(request, model, decoded, deadline)
            return await self._respond(
                request, model, decoded, computed, decode_seconds
            )

    async def _compute(
        self, request: Request, model: Model, decoded: InferRequest, deadline: float
    ) -> tuple[Model, AdmittedRequest]:
        """Compute a request; returns also the model, since a sequence keeps its own."""
        caller = request.caller
        id, start, end = _sequence(decoded)
        if id is None:
            sequences, _ = await model.encode(decoded)
            computed = await model.admission.compute(
                sequences, None, caller, deadline=deadline
            )
            return model, computed
        self._registry.check_streamable(model)
        if decoded.batch > 1:
            raise InvalidRequest("a request of a sequence must have batch size 1")
        # With the owner, so that no other can continue the sequence.
        key = (caller.owner, request.model, id)
        async with self._sessions.use(
            key, model, start=start, end=end, quota_owner=caller.quota_owner
        ) as session:
            state, features = session.state, session.model.metadata.input.features
            assert state is not None
            if session.model.decoding != model.decoding:
                raise InvalidRequest(
                    "this sequence began with a version of other inputs"
                )
            (frames,), (last_time,) = await session.model.encode(decoded, [state])
            if frames.shape[1] != features:  # of the version that it started with
                raise InvalidRequest(f"this sequence has {features} features a step")
            computed = await session.model.admission.compute(
                [frames],
                [state.packed],
                caller,
                deadline=deadline,
                return_state=True,
            )
            session.state = state.after(len(frames), computed.states[0], last_time)
            return session.model, computed

    async def _respond(
        self,
        request: Request,
        model: Model,
        decoded: InferRequest,
        computed: AdmittedRequest,
        decode_seconds: float,
    ) -> Response:
        begun = time.perf_counter()
        probabilities, caller = computed.future.result(), request.caller
        id = decoded.id or request.scope["state"]["request_id"]
        # Without the sequences, which may go to another process.
        summary = InferRequest([], decoded.steps, decoded.output, id)
        body, json_bytes = await self._codecs.run_if_large(
            caller.id,
            open_inference.response_bytes(model.metadata, len(probabilities), summary),
            open_inference.encode,
            model.metadata,
            probabilities,
            summary,
        )
        caller.reservation.resize(len(body))
        encode_seconds = time.perf_counter() - begun
        model.admission.record(computed, decode_seconds, encode_seconds, caller)
        if not decoded.output.binary:
            return Response(body, compressible=True)
        headers = ((JSON_LENGTH, b"%d" % json_bytes),)
        return Response(body, "application/octet-stream", True, headers)

    def _model(self, request: Request) -> Model:
        try:
            return self._registry.get(request.model)
        except errors.UnknownModel as error:
            message = f"Request for unknown model: {error.detail}"
            raise errors.UnknownModel(message) from None


def _json_bytes(header: str | None) -> int | None:
    if header is None:
        return None
    if not header.isdecimal() or len(header) > 15:
        raise InvalidRequest("Inference-Header-Content-Length must be a number")
    return int(header)


def _timeout(request: InferRequest) -> float:
    """The parameter `timeout`, in seconds."""
    microseconds = request.parameters.get("timeout", 0)
    if type(microseconds) is not int or not 0 <= microseconds <= MAX_TIMEOUT:
        message = f"must be microseconds, at most {MAX_TIMEOUT}"
        raise invalid_field("parameters.timeout", message)
    return microseconds / 1e6 or math.inf


def _sequence(request: InferRequest) -> tuple[int | str | None, bool, bool]:
    """A sequence's id (None: no sequence), START, and END."""
    parameters = request.parameters
    id = parameters.get("sequence_id", 0)
    if type(id) not in (int, str) or (type(id) is str and len(id) > MAX_ID_CHARACTERS):
        message = (
            f"must be a number, or a text of at most {MAX_ID_CHARACTERS} characters"
        )
        raise invalid_field("parameters.sequence_id", message)
    flags = [parameters.get(f"sequence_{name}", False) for name in ("start", "end")]
    if any(type(flag) is not bool for flag in flags):
        message = "sequence_start and sequence_end must be true or false"
        raise invalid_field("parameters", message)
    return id or None, flags[0], flags[1]
