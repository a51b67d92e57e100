"""TensorFlow Serving's REST API v1."""

import time
from typing import Any

from service import errors
from service.codecs import native, tf_serving
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import CodecProcesses, RequestDecoder
from service.codecs.tf_serving import PROBABILITIES, SERVING, STEP
from service.compat.router import Call, Paths, Reply, reply
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines
from service.registry.catalog import Model
from service.registry.registry import Registry
from service.settings import Settings

MODEL = (
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
)
NAMED = "/v1/models/{model}"
TYPES = {"frames": "DT_FLOAT", "lengths": "DT_INT32", "state": "DT_FLOAT"}


class TfServing:
    """Its paths."""

    def __init__(
        self,
        registry: Registry,
        codecs: CodecProcesses,
        settings: Settings,
    ):
        self._registry, self._codecs = registry, codecs
        self._settings, self._callers = (
            settings,
            RequestDeadlines(settings.request_seconds),
        )

    def paths(self, bodies: BodyReader) -> Paths:
        made = Paths(bodies, ignore_case=True)
        made.add("/v1/models", "/v1/models/?", get=self._models)
        made.add(f"{NAMED}:predict", f"{MODEL}:predict", post=self._predict)
        made.add(f"{NAMED}:classify", f"{MODEL}:classify", post=self._classify)
        made.add(f"{NAMED}:regress", f"{MODEL}:regress", post=self._regress)
        made.add(f"{NAMED}/metadata", f"{MODEL}/metadata", get=self._metadata)
        made.add(NAMED, f"{MODEL}/?", get=self._status)
        return made

    async def _models(self, call: Call) -> Reply:
        """Of KServe's V1; TensorFlow Serving has nothing there."""
        return reply({"models": list(self._registry.models)})

    async def _status(self, call: Call) -> Reply:
        model = self._model(call)
        name = model.metadata.name
        if "@" in call.model:
            versions = [model.metadata.version]
        else:
            versions = [*self._registry.versions.get(name, {})][::-1]
        told = [
            {
                "version": version,
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for version in versions
        ]
        # What is beside it is KServe's V1.
        return reply({"model_version_status": told, "name": name, "ready": True})

    async def _metadata(self, call: Call) -> Reply:
        model = self._model(call)
        about = model.metadata
        spec = {"name": about.name, "signature_name": "", "version": about.version}
        signatures = {SERVING: _signature(model, SERVING)}
        if about.state_size:
            signatures[STEP] = _signature(model, STEP)
        inner = {"signature_def": {"signature_def": signatures}}
        return reply({"model_spec": spec, "metadata": inner})

    async def _predict(self, call: Call) -> Reply:
        model, caller = self._model(call), call.caller
        compressed = await call.body()
        about = model.metadata
        with self._callers.enforce(call.scope, call.receive, call.until) as until:
            body = await compressed()
            begun = time.perf_counter()
            model.admission.check_room(until, caller.id)
            asked = await self._codecs.decode(
                caller.id,
                RequestDecoder.decode_instances,
                body,
                about.input.features,
                about.state_size,
            )
            del body
            read = time.perf_counter() - begun
            states, sequences = asked.states or None, asked.sequences
            native.check_response_size(about, len(sequences), sum(map(len, sequences)))
            request = await model.admission.compute(
                sequences, states, caller, deadline=until, return_state=asked.step
            )
            answers = request.future.result()
            answered = time.perf_counter()
            size = NUMBER_BYTES * sum(answer.size for answer in answers)
            size += sum(map(len, request.states))
            text = await self._codecs.run_if_large(
                caller.id, size, tf_serving.encode, answers, request.states, asked
            )
            caller.reservation.resize(len(text))
        model.admission.record(request, read, time.perf_counter() - answered, caller)
        return Reply(text, compressible=True)

    async def _classify(self, call: Call) -> Reply:
        model, caller = self._model(call), call.caller
        if model.metadata.task != "classify":
            told = f"{model.metadata.name} has classes for each step: use :predict"
            raise errors.InvalidRequest(told)
        compressed = await call.body()
        decode, features = tf_serving.decode_examples, model.metadata.input.features
        with self._callers.enforce(call.scope, call.receive, call.until) as until:
            body = await compressed()
            begun = time.perf_counter()
            model.admission.check_room(until, caller.id)
            size, limits = len(body), self._settings.limits
            sequences = await self._codecs.run_if_large(
                caller.id, size, decode, body, features, limits
            )
            del body
            read = time.perf_counter() - begun
            native.check_response_size(model.metadata, len(sequences), 0)
            request = await model.admission.compute(
                sequences, None, caller, deadline=until
            )
            answers = request.future.result()
            answered = time.perf_counter()
            size = NUMBER_BYTES * sum(answer.size for answer in answers)
            text = await self._codecs.run_if_large(
                caller.id, size, tf_serving.encode_classes, model.metadata, answers
            )
        model.admission.record(request, read, time.perf_counter() - answered, caller)
        return Reply(text, compressible=True)

    async def _regress(self, call: Call) -> Reply:
        self._model(call)
        raise errors.InvalidRequest("the networks here have classes: use :predict")

    def _model(self, call: Call) -> Model:
        try:
            return self._registry.get(call.model)
        except errors.UnknownModel as error:
            told = f"Servable not found for request: {error.detail}"
            raise errors.UnknownModel(told) from None


def _signature(model: Model, name: str) -> dict[str, Any]:
    """A SignatureDef in JSON, as the bundle's SavedModel has it."""
    about = model.metadata
    steps = [-1] if about.task == "label" else []
    shapes = {
        "frames": [-1, -1, about.input.features],
        "lengths": [-1],
    }
    call = "StatefulPartitionedCall" + ("_1" if name == STEP else "")
    outputs = {PROBABILITIES: [-1, *steps, len(about.classes)]}
    if name == STEP:
        shapes["state"] = outputs["state"] = [-1, about.state_size]
    return {
        "inputs": {k: _tensor(f"{name}_{k}:0", k, v) for k, v in shapes.items()},
        "outputs": {
            key: _tensor(f"{call}:{place}", key, shape)
            for place, (key, shape) in enumerate(outputs.items())
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def _tensor(name: str, key: str, shape: list[int]) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in shape]
    return {
        "dtype": TYPES.get(key, "DT_FLOAT"),
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": name,
    }
