"""Examples of requests to a model: of its golden sequences, a text, or its categories."""

import json
from typing import Any

import numpy as np

from model.bundle.bundle import BundleError
from model.bundle.records import CategoryColumn, NumberColumn
from service.registry.catalog import Model

# An example is read on the event loop, and shown on a page: it is small, or refused.
MAX_GOLDEN_BYTES, MAX_NUMBERS = 2**22, 10_000
TEXT = "turn on the light"
TIMES = ("2026-01-31T12:00:00Z", "2026-01-31T12:00:05Z")


def request(name: str, model: Model) -> dict[str, Any]:
    """The body of a request.

    Raises:
        BundleError: the golden sequences are too large, or have changed.
    """
    if model.vocabulary is not None:
        return {"model": name, "texts": [TEXT]}
    if model.schema is not None:
        return {"model": name, "records": [_records(model)]}
    return {"model": name, "sequences": [_frames(model)]}


def lines(model: Model) -> str:
    """The same sequence as the lines of a stream.

    Raises:
        BundleError: see `request`.
    """
    parts: list[dict[str, Any]]
    if model.schema is not None:
        parts = [{"records": [record]} for record in _records(model)]
    elif model.vocabulary is None:
        parts = [{"frames": [frame]} for frame in _frames(model)]
    elif model.vocabulary.kind == "characters":
        parts = [{"text": f"{word} "} for word in TEXT.split()]
    else:
        parts = [{"tokens": [word]} for word in TEXT.split()]
    return "".join(f"{json.dumps(line)}\n" for line in [*parts, {"end": True}])


def _records(model: Model) -> list[dict[str, Any]]:
    """Two records of known categories."""
    assert model.schema is not None
    records = []
    for index, time in enumerate(TIMES):
        record: dict[str, Any] = {}
        for column in model.schema.fields:
            if isinstance(column, CategoryColumn):
                names = column.entries or ("?",)
                record[column.name] = names[index % len(names)]
            else:
                number = isinstance(column, NumberColumn)
                record[column.name] = float(index) if number else time
        records.append(record)
    return records


def _frames(model: Model) -> list[list[float]]:
    """The shortest golden sequence, rounded for readability."""
    golden = model.bundle.golden(MAX_GOLDEN_BYTES)
    row = int(golden.lengths.argmin())
    frames = golden.frames[row, : golden.lengths[row]]
    if frames.size > MAX_NUMBERS:
        raise BundleError(f"{model.bundle.folder}: too long for an example")
    return [[float(np.round(v, 3)) for v in frame] for frame in frames.tolist()]
