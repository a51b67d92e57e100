"""Read JSON Lines: one sequence on each line.

{"frames": [[0.1, 2], [0.3, 4]], "label": "a"}                    classify
{"frames": [[0.1, 2], [0.3, 4]], "labels": ["a", "b"]}            label
{"frames": [0.1, 0.3], "label": "a", "split": "test"}             one feature
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.dataset import PARTS, UNASSIGNED, Dataset, Task, default_features
from model.datasets.readers import files, labels

KEYS: dict[Task, str] = {"classify": "label", "label": "labels"}
ALLOWED = {"frames", "split", *KEYS.values()}


def read(
    path: Path,
    *,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    names = labels.Labels(classes)
    frames: list[np.ndarray] = []
    codes: list[int] = []
    split: list[int] = []
    for line, text in files.numbered_lines(path):
        if not text.strip():
            continue
        try:
            record = _parse(text)
            task = task or _guess(record)
            frames.append(_frames(record, frames[0].shape[1] if frames else None))
            codes += _codes(record, task, len(frames[-1]), names)
            split.append(_part(record))
        except ValueError as error:
            raise files.ReadError(path, line, str(error)) from None
    if task is None or not frames:
        raise files.ReadError(path, None, "no sequences in the file")
    return Dataset(
        name=path.stem,
        task=task,
        frames=np.concatenate(frames),
        lengths=np.array([len(sequence) for sequence in frames]),
        targets=names.targets(codes),
        classes=names.classes,
        features=default_features(frames[0].shape[1]),
        split=np.array(split),
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        record = json.loads(
            text, parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(reason) from None
    except RecursionError:
        raise ValueError("not JSON of this shape: nested too deeply") from None
    if type(record) is not dict:
        raise ValueError("expected an object with 'frames' and 'label' or 'labels'")
    for key in record:
        if key not in ALLOWED:
            raise ValueError(f"unknown key {key!r:.40}")
    if "frames" not in record:
        raise ValueError("'frames' is missing")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is repeated")
    return record


def _guess(record: dict[str, Any]) -> Task:
    for task, key in KEYS.items():
        if key in record:
            return task
    raise ValueError("'label' or 'labels' is missing")


def _frames(record: dict[str, Any], expected: int | None) -> np.ndarray:
    """Return the frames of a record, [T, F] float32."""
    rows = record["frames"]
    if not isinstance(rows, list) or not rows:
        raise ValueError("'frames' is not a list of at least one step")
    if not isinstance(rows[0], list):
        if any(isinstance(row, list) for row in rows):
            raise ValueError("'frames' mixes numbers and lists of numbers")
        rows = [[value] for value in rows]
    for step, row in enumerate(rows):
        if not isinstance(row, list) or not row:
            raise ValueError(f"step {step} of 'frames' is not a list of numbers")
        if len(row) != len(rows[0]):
            first = len(rows[0])
            raise ValueError(f"step {step} has {len(row)} features, step 0 has {first}")
    if expected not in (None, len(rows[0])):
        raise ValueError(f"{len(rows[0])} features; the file began with {expected}")
    # NumPy would read true as 1 and "1" as 1.0.
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        raise ValueError(f"{_first_other(rows)!r:.40} in 'frames' is not a number")
    try:
        with np.errstate(over="ignore"):
            frames = np.array(rows, np.float64).astype(np.float32)
    except OverflowError:
        raise ValueError("'frames' holds a number too large for float32") from None
    if not np.isfinite(frames).all():
        raise ValueError("'frames' holds a number too large for float32")
    return frames


def _first_other(rows: list[list[Any]]) -> object:
    values = chain.from_iterable(rows)
    return next(value for value in values if type(value) not in (int, float))


def _codes(
    record: dict[str, Any], task: Task, steps: int, names: labels.Labels
) -> list[int]:
    key = KEYS[task]
    other = next(name for name in KEYS.values() if name != key)
    if other in record:
        raise ValueError(f"{other!r} does not belong to task {task}")
    if key not in record:
        raise ValueError(f"{key!r} is missing")
    values = record[key]
    if task == "classify":
        values = [values]
    elif not isinstance(values, list) or len(values) != steps:
        raise ValueError(f"'labels' is not a list of {steps}, one for each step")
    return [names.encode(labels.to_text(value)) for value in values]


def _part(record: dict[str, Any]) -> int:
    if "split" not in record:
        return UNASSIGNED
    if record["split"] not in PARTS:
        raise ValueError(f"'split' is none of {', '.join(PARTS)}")
    return PARTS.index(record["split"])
