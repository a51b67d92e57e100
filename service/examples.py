"""Worked examples for OpenAPI, from the bundles' own golden sequences."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .catalogue import Model
from .registry import Registry

PATHS = {"classify": "/classify", "label": "/label"}


def document(
    plain: Callable[[], dict[str, Any]], registry: Registry
) -> Callable[[], dict[str, Any]]:
    """The OpenAPI document with a request for each model in service; made once for
    those that are."""
    made: dict[tuple[str, ...], dict[str, Any]] = {}

    def make() -> dict[str, Any]:
        served = tuple(model.digest for model in registry.models.values())
        found = made.get(served)
        if found is None:
            found = _add(plain(), registry)
            made.clear()
            made[served] = found
        return found

    return make


def _add(document: dict[str, Any], registry: Registry) -> dict[str, Any]:
    document = copy.deepcopy(document)
    body = document["paths"]["/stream"]["post"]["requestBody"]["content"]
    lines = body["application/x-ndjson"].setdefault("examples", {})
    for name, model in registry.models.items():
        operation = document["paths"][PATHS[model.metadata.task]]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        examples = content.setdefault("examples", {})
        examples[name] = {
            "summary": f"A sequence for {name}",
            "value": request(model),
        }
        if model.metadata.state_size:
            examples[f"{name}, resumable"] = {
                "summary": "The same, with a state to go on from later",
                "value": request(model) | {"return_state": True},
            }
            lines[name] = {
                "summary": f"Steps for {name}, and the end",
                "value": steps(model),
            }
    return document


def request(model: Model) -> dict[str, Any]:
    """The shortest golden sequence as a request, rounded for the eye."""
    golden = model.bundle.golden()
    row = int(golden.lengths.argmin())
    frames = golden.frames[row, : golden.lengths[row]]
    rounded = [[float(np.round(v, 3)) for v in frame] for frame in frames.tolist()]
    return {"model": model.metadata.name, "sequences": [rounded]}


def steps(model: Model) -> str:
    """The same sequence as a stream's lines, a step each."""
    (frames,) = request(model)["sequences"]
    lines = [{"frames": [frame]} for frame in frames] + [{"end": True}]
    return "".join(f"{json.dumps(line)}\n" for line in lines)
