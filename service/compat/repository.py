"""Triton's model repository over HTTP: what there is, loaded and unloaded.

`POST /v2/repository/...`, open where the setting `admin` is on. As in Triton, loading
may override a model's configuration: here only which batching it tells of, since
that is how a load generator decides what to send; both kinds are always answered.
"""

import asyncio
from typing import Any

import msgspec

from service.codecs import validation
from service.codecs.validation import invalid_field
from service.compat import open_inference_metadata
from service.compat.open_inference_metadata import BatchingModes
from service.compat.router import Call, Paths, Reply, reply
from service.errors import Forbidden, ServiceError
from service.registry.registry import Registry
from service.settings import Settings

ROOT = "/v2/repository"


class Index(msgspec.Struct):
    """What `index` takes."""

    ready: bool = False


class Change(msgspec.Struct):
    """What `load` and `unload` take."""

    parameters: dict[str, Any] | None = None


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """What can be overridden."""

    sequence_batching: dict[str, Any] | None = None
    dynamic_batching: dict[str, Any] | None = None


_index = msgspec.json.Decoder(Index)
_change = msgspec.json.Decoder(Change)
_config = msgspec.json.Decoder(Config)


class ModelRepository:
    """Its paths."""

    def __init__(
        self, registry: Registry, batching_modes: BatchingModes, settings: Settings
    ):
        self._registry, self._batching_modes = registry, batching_modes
        self._open = settings.admin

    def add(self, paths: Paths) -> None:
        paths.add(f"{ROOT}/index", f"{ROOT}/index", post=self._list)
        named, model = f"{ROOT}/models/{{model}}", f"{ROOT}/models/(?P<model>[^/]+)"
        paths.add(f"{named}/load", f"{model}/load", post=self._load)
        paths.add(f"{named}/unload", f"{model}/unload", post=self._unload)

    async def _list(self, call: Call) -> Reply:
        asked = await self._asked(call, _index) or Index()
        return reply(open_inference_metadata.index(self._registry, ready=asked.ready))

    async def _load(self, call: Call) -> Reply:
        asked = await self._asked(call, _change) or Change()
        given = dict(asked.parameters or {})
        config = given.pop("config", None)
        if given or not isinstance(config, str | None):
            raise invalid_field(
                "parameters", "may hold config, a text; a folder holds the rest"
            )
        override = validation.decode_json(_config, (config or "{}").encode(), "config")
        name = call.named["model"] or ""
        before = name in self._registry.models
        await asyncio.wrap_future(self._registry.load(name))
        sequences = override.sequence_batching is not None
        if sequences:
            try:
                self._registry.check_streamable(self._registry.get(name))
            except ServiceError:
                if not before:  # a refusal changes nothing
                    await asyncio.wrap_future(self._registry.unload(name))
                raise
        self._batching_modes.tell(name, sequences=sequences)
        return reply({})

    async def _unload(self, call: Call) -> Reply:
        await self._asked(call, _change)
        name = call.named["model"] or ""
        await asyncio.wrap_future(self._registry.unload(name))
        return reply({})

    async def _asked(self, call: Call, decoder: msgspec.json.Decoder[Any]) -> Any:
        """What the body says; None where there is none.

        Raises:
            Forbidden: it isn't for this caller.
        """
        if not self._open:
            raise Forbidden("the model repository is closed: set UNROLLED_ADMIN=true")
        if call.header(b"origin") is not None:
            raise Forbidden("the model repository is not for web pages")
        body = await (await call.body())()
        return validation.decode_json(decoder, body) if body.strip() else None
