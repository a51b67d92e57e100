"""TensorFlow Serving's REST API v1, with KServe's additions."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from service import errors
from service.codecs import native, tf_serving
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import CodecProcesses, RequestDecoder
from service.codecs.tf_serving import PROBABILITIES, SERVING, STEP, InstancesRequest
from service.compat.router import (
    Request,
    Response,
    Router,
    json_response,
    refuse_text,
)
from service.http.body import BodyReader
from service.http.deadlines import RequestDeadlines
from service.registry.catalog import Model
from service.registry.registry import Registry
from service.settings import Settings

MODEL = (
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
)
PATH = "/v1/models/{model}"
TYPES = {"lengths": "DT_INT32", "text": "DT_STRING"}  # others are DT_FLOAT


class TfServing:
    """The routes of `/v1`."""

    def __init__(
        self,
        registry: Registry,
        codecs: CodecProcesses,
        settings: Settings,
    ):
        self._registry, self._codecs = registry, codecs
        self._deadlines = RequestDeadlines(settings.request_seconds)

    def router(self, body_reader: BodyReader) -> Router:
        router = Router(body_reader, ignore_case=True)
        router.add("/v1/models", "/v1/models/?", get=self._models)
        router.add(f"{PATH}:predict", f"{MODEL}:predict", post=self._predict)
        router.add(f"{PATH}:classify", f"{MODEL}:classify", post=self._classify)
        router.add(f"{PATH}:regress", f"{MODEL}:regress", post=self._regress)
        router.add(f"{PATH}/metadata", f"{MODEL}/metadata", get=self._metadata)
        router.add(PATH, f"{MODEL}/?", get=self._status)
        return router

    async def _models(self, request: Request) -> Response:
        """Of KServe's V1; TensorFlow Serving has nothing at this path."""
        return json_response({"models": list(self._registry.models)})

    async def _status(self, request: Request) -> Response:
        metadata = self._model(request).metadata
        if "@" in request.model:
            versions = [metadata.version]
        else:
            versions = [*self._registry.versions.get(metadata.name, {})][::-1]
        statuses = [
            {
                "version": version,
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for version in versions
        ]
        # The other fields are of KServe's V1.
        return json_response(
            {"model_version_status": statuses, "name": metadata.name, "ready": True}
        )

    async def _metadata(self, request: Request) -> Response:
        model = self._model(request)
        about = model.metadata
        spec = {"name": about.name, "signature_name": "", "version": about.version}
        signatures = {SERVING: _signature(model, SERVING)}
        if about.state_size and model.reads == "frames":
            signatures[STEP] = _signature(model, STEP)
        definitions = {"signature_def": {"signature_def": signatures}}
        return json_response({"model_spec": spec, "metadata": definitions})

    async def _predict(self, request: Request) -> Response:
        model = self._model(request)
        if model.vocabulary is not None:
            decode = RequestDecoder.decode_instances_of_text
            columns = model.metadata.input.features
            return await self._respond(
                request, model, decode, model.vocabulary.kind, columns
            )
        if model.columns is not None:
            return await self._respond(
                request,
                model,
                RequestDecoder.decode_instances_of_records,
                model.columns,
            )
        features, state_size = model.metadata.input.features, model.metadata.state_size
        return await self._respond(
            request, model, RequestDecoder.decode_instances, features, state_size
        )

    async def _classify(self, request: Request) -> Response:
        model = self._model(request)
        refuse_text(model)
        metadata = model.metadata
        if metadata.task != "classify":
            raise errors.InvalidRequest(
                f"{metadata.name} has classes for each step: use :predict"
            )
        return await self._respond(
            request, model, RequestDecoder.decode_examples, metadata.input.features
        )

    async def _regress(self, request: Request) -> Response:
        self._model(request)
        raise errors.InvalidRequest("the models here have classes: use :predict")

    async def _respond(
        self,
        request: Request,
        model: Model,
        decode: Callable[..., InstancesRequest],
        *args: int | str | dict[str, str],
    ) -> Response:
        """Decode a request with a method of `RequestDecoder`, compute it, and encode the
        response."""
        caller, metadata = request.caller, model.metadata
        body = await request.body()
        with self._deadlines.enforce(
            request.scope, request.receive, request.deadline
        ) as deadline:
            begun = time.perf_counter()
            model.admission.check_room(deadline, caller.id)
            decoded = await self._codecs.decode(caller.id, decode, body, *args)
            del body
            states = decoded.states or None
            sequences, _ = await model.encode(decoded, names=decoded.names)
            decode_seconds = time.perf_counter() - begun
            steps = sum(map(len, sequences))
            native.check_response_size(metadata, len(sequences), steps)
            computed = await model.admission.compute(
                sequences, states, caller, deadline=deadline, return_state=decoded.step
            )
            begun = time.perf_counter()
            probabilities = computed.future.result()
            size = NUMBER_BYTES * sum(array.size for array in probabilities)
            size += sum(map(len, computed.states))
            content = await self._codecs.run_if_large(
                caller.id,
                size,
                tf_serving.encode,
                metadata,
                probabilities,
                computed.states,
                # Without the inputs, which may go to another process.
                replace(decoded, sequences=[], states=[], tokens=None, records=None),
            )
            caller.reservation.resize(len(content))
        encode_seconds = time.perf_counter() - begun
        model.admission.record(computed, decode_seconds, encode_seconds, caller)
        return Response(content, compressible=True)

    def _model(self, request: Request) -> Model:
        try:
            return self._registry.get(request.model)
        except errors.UnknownModel as error:
            message = f"Servable not found for request: {error.detail}"
            raise errors.UnknownModel(message) from None


def _signature(model: Model, name: str) -> dict[str, Any]:
    """A SignatureDef in JSON, as in the bundle's SavedModel."""
    about = model.metadata
    steps = [-1] if about.task == "label" else []
    inputs = {"frames": [-1, -1, about.input.features], "lengths": [-1]}
    if model.vocabulary is not None:
        inputs = {"text": [-1]}
    types = dict(TYPES)
    if model.columns is not None:
        inputs = {name: [-1, -1] for name in model.columns}
        types = {
            name: "DT_FLOAT" if kind == "number" else "DT_STRING"
            for name, kind in model.columns.items()
        }
    outputs = {PROBABILITIES: [-1, *steps, len(about.classes)]}
    call = "StatefulPartitionedCall"
    if name == STEP:
        inputs["state"] = outputs["state"] = [-1, about.state_size]
        call += "_1"
    return {
        "inputs": {
            k: _tensor(f"{name}_{k}:0", types.get(k), v) for k, v in inputs.items()
        },
        "outputs": {
            key: _tensor(f"{call}:{index}", None, shape)
            for index, (key, shape) in enumerate(outputs.items())
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def _tensor(name: str, datatype: str | None, shape: list[int]) -> dict[str, Any]:
    dimensions = [{"size": str(size), "name": ""} for size in shape]
    return {
        "dtype": datatype or "DT_FLOAT",
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
        "name": name,
    }
