"""Triton's model repository API: list, load and unload models.

`POST /v2/repository/...` needs the setting `admin`. As in Triton, loading may override a
model's configuration: here only the kind of batching that it announces, by which a load
generator decides what to send. Models always answer both kinds.
"""

import asyncio
from typing import TypeVar

import msgspec

from service.codecs import compression
from service.codecs.validation import decode_json, invalid_field
from service.compat import open_inference_metadata
from service.compat.open_inference_metadata import BatchingModes
from service.compat.router import Request, Response, Router, json_response
from service.errors import Forbidden, ServiceError
from service.registry.registry import Registry
from service.settings import Settings

ROOT = "/v2/repository"


class IndexBody(msgspec.Struct):
    """The JSON of `index`."""

    ready: bool = False


class LoadBody(msgspec.Struct):
    """The JSON of `load` and `unload`."""

    parameters: dict[str, object] | None = None


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The parts of a model's configuration that a load can override."""

    sequence_batching: dict[str, object] | None = None
    dynamic_batching: dict[str, object] | None = None


T = TypeVar("T", bound=msgspec.Struct)

_index = msgspec.json.Decoder(IndexBody)
_load = msgspec.json.Decoder(LoadBody)
_config = msgspec.json.Decoder(Config)


class ModelRepository:
    """The routes of the model repository."""

    def __init__(
        self, registry: Registry, batching_modes: BatchingModes, settings: Settings
    ):
        self._registry, self._batching_modes = registry, batching_modes
        self._enabled = settings.admin

    def add_routes(self, router: Router) -> None:
        router.add(f"{ROOT}/index", f"{ROOT}/index", post=self._list)
        path, pattern = f"{ROOT}/models/{{model}}", f"{ROOT}/models/(?P<model>[^/]+)"
        router.add(f"{path}/load", f"{pattern}/load", post=self._load)
        router.add(f"{path}/unload", f"{pattern}/unload", post=self._unload)

    async def _list(self, request: Request) -> Response:
        body = await self._read(request, _index) or IndexBody()
        models = open_inference_metadata.index(self._registry, ready=body.ready)
        return json_response(models)

    async def _load(self, request: Request) -> Response:
        body = await self._read(request, _load) or LoadBody()
        parameters = dict(body.parameters or {})
        config = parameters.pop("config", None)
        if parameters or not isinstance(config, str | None):
            raise invalid_field("parameters", "may only have config, as a text")
        override = decode_json(_config, (config or "{}").encode(), "config")
        name = request.path_params["model"] or ""
        was_loaded = name in self._registry.models
        await asyncio.wrap_future(self._registry.load(name))
        sequences = override.sequence_batching is not None
        if sequences:
            try:
                self._registry.check_streamable(self._registry.get(name))
            except ServiceError:
                if not was_loaded:  # a refused request changes nothing
                    await asyncio.wrap_future(self._registry.unload(name))
                raise
        self._batching_modes.set(name, sequences=sequences)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await self._read(request, _load)
        name = request.path_params["model"] or ""
        await asyncio.wrap_future(self._registry.unload(name))
        return json_response({})

    async def _read(
        self, request: Request, decoder: msgspec.json.Decoder[T]
    ) -> T | None:
        """The decoded body; None if it is empty.

        Raises:
            Forbidden: this client may not use the repository.
        """
        if not self._enabled:
            raise Forbidden("the model repository is closed: set UNROLLED_ADMIN=true")
        if request.header(b"origin") is not None:
            raise Forbidden("the model repository is not for web pages")
        body = compression.whole(await request.body())
        return decode_json(decoder, body) if body.strip() else None
