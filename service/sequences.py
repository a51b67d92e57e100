"""Sequences from a file of the caller's, for the command line."""

import csv
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class ReadError(ValueError):
    """A file that holds no sequences; names the file and the reason."""


Asked = tuple[list[np.ndarray], str | None, int | None]


def read(path: Path) -> Asked:
    """The sequences [T, F] of a file; and the model and top_k of a request's.

    Raises:
        ReadError: no such file, another format, or not numbers.
    """
    try:
        return _read(path)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        csv.Error,
        zipfile.BadZipFile,
    ) as error:
        raise ReadError(f"{path}: {error}") from None


def _read(path: Path) -> Asked:
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return [_frames(np.load(file, allow_pickle=False))], None, None
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        rows = [row for row in csv.reader(text.splitlines()) if row]
        try:
            list(map(float, rows[0] if rows else []))
        except ValueError:
            rows = rows[1:]  # a header
        return [_frames([list(map(float, row)) for row in rows])], None, None
    if path.suffix in (".jsonl", ".ndjson"):
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [_frames(line["frames"]) for line in lines], None, None
    value = json.loads(text)
    if isinstance(value, dict):
        return (
            [_frames(frames) for frames in value["sequences"]],
            value.get("model"),
            value.get("top_k"),
        )
    return [_frames(value)], None, None


def _frames(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        frames = np.asarray(values, np.float32)
    if not np.isfinite(frames).all():
        raise ValueError("every number must be finite in float32")
    if frames.ndim != 2:
        raise ValueError("a sequence must be a list of steps, each a list of numbers")
    return frames
