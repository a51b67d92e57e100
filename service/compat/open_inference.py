"""The Open Inference Protocol v2 over HTTP, with extensions of Triton's."""

import math
import time

from service import errors
from service.codecs import open_inference
from service.codecs.open_inference import InferRequest
from service.codecs.process import CodecProcesses
from service.codecs.validation import invalid_field
from service.compat import open_inference_metadata
from service.compat.open_inference_metadata import BatchingModes
from service.compat.router import Call, Paths, Reply, reply
from service.compat.sequences import SequenceSessions
from service.errors import InvalidRequest
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines
from service.pool.admission import AdmittedRequest
from service.registry.catalog import Model
from service.registry.registry import Registry
from service.settings import Settings

MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]{1,9}))?"
NAMED = "/v2/models/{model}"
LENGTH = b"inference-header-content-length"
LONGEST_TIMEOUT = 2**64 - 1  # microseconds
LONGEST_ID = 256  # characters of a sequence's


class OpenInference:
    """Its paths."""

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
            batching_modes: what batching each model is to tell of.
            version: of the service.
        """
        self._registry, self._codecs = registry, codecs
        self._sessions = sessions
        self._batching_modes = batching_modes
        self._settings, self._version = settings, version
        self._limits, self._callers = (
            settings.limits,
            RequestDeadlines(settings.request_seconds),
        )

    def paths(self, bodies: BodyReader) -> Paths:
        made = Paths(bodies)
        # The first that fits answers: what is asked most, first.
        made.add(f"{NAMED}/infer", f"{MODEL}/infer", post=self._infer)
        made.add("/v2", "/v2/?", get=self._server)
        made.add("/v2/health/live", "/v2/health/live/?", get=self._live)
        made.add("/v2/health/ready", "/v2/health/ready/?", get=self._ready)
        made.add("/v2/models", "/v2/models/?", get=self._models)
        made.add("/v2/models/stats", "/v2/models/stats", get=self._statistics)
        made.add(f"{NAMED}/ready", f"{MODEL}/ready", get=self._model_ready)
        made.add(f"{NAMED}/config", f"{MODEL}/config", get=self._config)
        made.add(f"{NAMED}/stats", f"{MODEL}/stats", get=self._statistics)
        made.add(NAMED, f"{MODEL}/?", get=self._metadata)
        return made

    async def _server(self, call: Call) -> Reply:
        extensions: tuple[str, ...] = open_inference_metadata.EXTENSIONS
        if self._settings.admin:
            extensions += open_inference_metadata.ADMIN_EXTENSIONS
        about = {"name": self._settings.server_name, "version": self._version}
        return reply(about | {"extensions": extensions})

    async def _live(self, call: Call) -> Reply:
        if not self._registry.alive:
            raise errors.NotReady("no worker lives")
        return reply({"live": True})

    async def _ready(self, call: Call) -> Reply:
        if not self._registry.ready:
            told = "; ".join(self._registry.not_ready_reasons())
            raise errors.NotReady(told, headers={"Retry-After": "1"})
        return reply({"ready": True, "live": True})

    async def _models(self, call: Call) -> Reply:
        return reply({"models": list(self._registry.models)})

    async def _model_ready(self, call: Call) -> Reply:
        return reply({"name": self._model(call).metadata.name, "ready": True})

    async def _metadata(self, call: Call) -> Reply:
        model = self._model(call)
        versions = list(self._registry.versions.get(model.metadata.name, {}))
        return reply(open_inference_metadata.metadata(model, versions))

    async def _config(self, call: Call) -> Reply:
        of, model = self._settings, self._model(call)
        made = open_inference_metadata.config(model, of.max_sequences, of.keep_versions)
        return reply(made | self._batching_modes.of(model.metadata.name))

    async def _statistics(self, call: Call) -> Reply:
        if "model" in call.named:
            models = [self._model(call)]
        else:
            there = self._registry.versions.values()
            models = [model for versions in there for model in versions.values()]
        told = [
            m.admission.statistics.as_dict(m.metadata.name, m.metadata.version)
            for m in models
        ]
        return reply({"model_stats": told})

    async def _infer(self, call: Call) -> Reply:
        model, caller = self._model(call), call.caller
        compressed = await call.body()
        given = call.header(LENGTH)
        if given is not None and not (given.isdecimal() and len(given) < 16):
            raise InvalidRequest("Inference-Header-Content-Length must be a number")
        size = None if given is None else int(given)
        waiting = self._callers.enforce(call.scope, call.receive, call.until)
        with waiting as until:
            body = await compressed()
            begun = time.perf_counter()
            model.admission.check_room(until, caller.id)
            parsed = len(body) if size is None else size  # what is binary takes no time
            asked = await self._codecs.run_if_large(
                caller.id,
                parsed,
                open_inference.decode,
                body,
                size,
                model.metadata.input.features,
                self._limits,
            )
            del body
            read = time.perf_counter() - begun
            open_inference.check_response_size(model.metadata, asked)
            until = waiting.shorten(begun + _timeout(asked))
            model, request = await self._compute(call, model, asked, until)
            return await self._write(call, model, asked, request, read)

    async def _compute(
        self, call: Call, model: Model, asked: InferRequest, until: float
    ) -> tuple[Model, AdmittedRequest]:
        """What has been computed, and by which model: a sequence keeps its own."""
        caller = call.caller
        id, start, end = _sequence(asked)
        if id is None:
            request = await model.admission.compute(
                asked.sequences, None, caller, deadline=until
            )
            return model, request
        self._registry.check_streamable(model)
        if len(asked.sequences) > 1:
            raise InvalidRequest("a request of a sequence must have batch size 1")
        (frames,) = asked.sequences
        # No sequence of one owner is another's, whatever its id.
        key = (caller.owner, call.model, id)
        turn = self._sessions.turn(
            key, model, start=start, end=end, share=caller.quota_owner
        )
        async with turn as session:
            before, takes = session.state, session.model.metadata.input.features
            assert before is not None
            if frames.shape[1] != takes:  # that of the version it began with
                raise InvalidRequest(f"this sequence has {takes} features a step")
            packed = [before.packed]
            request = await session.model.admission.compute(
                [frames], packed, caller, deadline=until, return_state=True
            )
            session.state = before.after(len(frames), request.states[0])
            return session.model, request

    async def _write(
        self,
        call: Call,
        model: Model,
        asked: InferRequest,
        request: AdmittedRequest,
        read: float,
    ) -> Reply:
        begun = time.perf_counter()
        answers = request.future.result()
        told = InferRequest(
            [], asked.steps, asked.output, asked.id or call.scope["state"]["request_id"]
        )
        size = open_inference.response_bytes(model.metadata, len(answers), told)
        body, json_bytes = await self._codecs.run_if_large(
            call.caller.id, size, open_inference.encode, model.metadata, answers, told
        )
        call.caller.reservation.resize(len(body))
        model.admission.record(request, read, time.perf_counter() - begun, call.caller)
        if not asked.output.binary:
            return Reply(body, compressible=True)
        headers = ((LENGTH, b"%d" % json_bytes),)
        return Reply(body, "application/octet-stream", True, headers)

    def _model(self, call: Call) -> Model:
        try:
            return self._registry.get(call.model)
        except errors.UnknownModel as error:
            told = f"Request for unknown model: {error.detail}"
            raise errors.UnknownModel(told) from None


def _timeout(asked: InferRequest) -> float:
    """Seconds; the parameter has microseconds."""
    given = asked.parameters.get("timeout", 0)
    if type(given) is not int or not 0 <= given <= LONGEST_TIMEOUT:
        told = f"must be microseconds, at most {LONGEST_TIMEOUT}"
        raise invalid_field("parameters.timeout", told)
    return given / 1e6 or math.inf


def _sequence(asked: InferRequest) -> tuple[int | str | None, bool, bool]:
    """The id (None: there is none), START, and END."""
    given = asked.parameters
    key = given.get("sequence_id", 0)
    if type(key) not in (int, str) or (type(key) is str and len(key) > LONGEST_ID):
        told = f"must be a number or text of at most {LONGEST_ID} characters"
        raise invalid_field("parameters.sequence_id", told)
    flags = [given.get(f"sequence_{name}", False) for name in ("start", "end")]
    if any(type(flag) is not bool for flag in flags):
        raise invalid_field(
            "parameters", "sequence_start and sequence_end are true or false"
        )
    return key or None, flags[0], flags[1]
