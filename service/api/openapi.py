"""The OpenAPI document: shared error responses, and examples from golden sequences."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from model.bundle.bundle import BundleError
from service.api import operations
from service.registry.catalog import Model
from service.registry.registry import Registry

PATHS = {"classify": "/classify", "label": "/label"}
# An example is read on the event loop, and shown on a page: it is small, or left out.
MAX_GOLDEN_BYTES, MAX_NUMBERS = 2**22, 10_000
TEXT = "turn on the light"  # of examples for models that read text


def complete(
    openapi: Callable[[], dict[str, Any]], registry: Registry
) -> Callable[[], dict[str, Any]]:
    """Wrap FastAPI's `openapi`: adds the shared components, and a request for each model
    in service. The document is cached until these change."""
    cache: dict[tuple[str, ...], dict[str, Any]] = {}

    def cached() -> dict[str, Any]:
        digests = tuple(model.digest for model in registry.models.values())
        document = cache.get(digests)
        if document is None:
            document = copy.deepcopy(openapi())
            _share_components(document)
            _add_examples(document, registry)
            cache.clear()
            cache[digests] = document
        return document

    return cached


def _share_components(document: dict[str, Any]) -> None:
    """Describe bodies and errors once, for all operations that refer to them."""
    statuses = set()
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            for status, response in list(responses.items()):
                if "$ref" in response:  # FastAPI adds a description
                    responses[status] = {"$ref": response["$ref"]}
                    statuses.add(int(status))
                elif status == "422":  # FastAPI's, of parameters: ours may be any text
                    del responses[status]
    components = operations.components(statuses)
    components["schemas"] |= document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    document |= {"components": components, "tags": operations.TAGS}


def _add_examples(document: dict[str, Any], registry: Registry) -> None:
    body = document["paths"]["/stream"]["post"]["requestBody"]["content"]
    stream_examples = body["application/x-ndjson"].setdefault("examples", {})
    for name, model in registry.models.items():
        try:
            value, lines = _example(name, model)
        except BundleError:  # its files are too large, or changed since it was loaded
            continue
        operation = document["paths"][PATHS[model.metadata.task]]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        examples = content.setdefault("examples", {})
        examples[name] = {
            "summary": f"A sequence for {name}",
            "value": value,
        }
        if model.metadata.state_size:
            examples[f"{name}, resumable"] = {
                "summary": "The same, with a state to resume from later",
                "value": value | {"return_state": True},
            }
            stream_examples[name] = {
                "summary": f"Steps for {name}, and the end",
                "value": lines,
            }


def _example(name: str, model: Model) -> tuple[dict[str, Any], str]:
    """A request, and the lines of a stream."""
    if model.vocabulary is None:
        frames = _golden_frames(model)
        return request(name, frames), steps(frames)
    words = TEXT.split()
    parts = [{"tokens": [word]} for word in words]
    if model.vocabulary.kind == "characters":
        parts = [{"text": f"{word} "} for word in words]  # type: ignore[dict-item]
    text = "".join(f"{json.dumps(line)}\n" for line in [*parts, {"end": True}])
    return {"model": name, "texts": [TEXT]}, text


def request(name: str, frames: list[list[float]]) -> dict[str, Any]:
    """A sequence as a request."""
    return {"model": name, "sequences": [frames]}


def steps(frames: list[list[float]]) -> str:
    """The same sequence as lines of a stream, one step each."""
    lines = [{"frames": [frame]} for frame in frames] + [{"end": True}]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def _golden_frames(model: Model) -> list[list[float]]:
    """The shortest golden sequence, rounded for readability."""
    golden = model.bundle.golden(MAX_GOLDEN_BYTES)
    row = int(golden.lengths.argmin())
    frames = golden.frames[row, : golden.lengths[row]]
    if frames.size > MAX_NUMBERS:
        raise BundleError(f"{model.bundle.folder}: too long for an example")
    return [[float(np.round(v, 3)) for v in frame] for frame in frames.tolist()]
