"""The OpenAPI document: shared error responses, and examples from golden sequences."""

import copy
from collections.abc import Callable
from typing import Any

from model.bundle.bundle import BundleError
from service.api import examples, operations
from service.registry.registry import Registry

PATHS = {"classify": "/classify", "label": "/label"}


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
            value, lines = examples.request(name, model), examples.lines(model)
        except BundleError:  # its files are too large, or changed since it was loaded
            continue
        operation = document["paths"][PATHS[model.metadata.task]]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        requests = content.setdefault("examples", {})
        requests[name] = {
            "summary": f"A sequence for {name}",
            "value": value,
        }
        if model.metadata.state_size:
            requests[f"{name}, resumable"] = {
                "summary": "The same, with a state to resume from later",
                "value": value | {"return_state": True},
            }
            stream_examples[name] = {
                "summary": f"Steps for {name}, and the end",
                "value": lines,
            }
