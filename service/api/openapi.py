"""Worked examples for OpenAPI, from the bundles' own golden sequences."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from model.bundle.bundle import BundleError
from service.registry.catalog import Model
from service.registry.registry import Registry

PATHS = {"classify": "/classify", "label": "/label"}
# Read and shown where requests are answered: an example is small, or none.
MOST_GOLDEN, MOST_NUMBERS = 2**22, 10_000


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
        try:
            frames = _frames(model)
        except BundleError:  # its files are too large, or others than were loaded
            continue
        operation = document["paths"][PATHS[model.metadata.task]]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        examples = content.setdefault("examples", {})
        examples[name] = {
            "summary": f"A sequence for {name}",
            "value": request(name, frames),
        }
        if model.metadata.state_size:
            examples[f"{name}, resumable"] = {
                "summary": "The same, with a state to go on from later",
                "value": request(name, frames) | {"return_state": True},
            }
            lines[name] = {
                "summary": f"Steps for {name}, and the end",
                "value": steps(frames),
            }
    return document


def request(name: str, frames: list[list[float]]) -> dict[str, Any]:
    """A sequence as a request."""
    return {"model": name, "sequences": [frames]}


def steps(frames: list[list[float]]) -> str:
    """The same sequence as a stream's lines, a step each."""
    lines = [{"frames": [frame]} for frame in frames] + [{"end": True}]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def _frames(model: Model) -> list[list[float]]:
    """The shortest golden sequence, rounded for the eye."""
    golden = model.bundle.golden(MOST_GOLDEN)
    row = int(golden.lengths.argmin())
    frames = golden.frames[row, : golden.lengths[row]]
    if frames.size > MOST_NUMBERS:
        raise BundleError(f"{model.bundle.folder}: too long for an example")
    return [[float(np.round(v, 3)) for v in frame] for frame in frames.tolist()]
