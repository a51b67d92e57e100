"""Sequences from a file of the caller's, for the command line."""

import csv
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.lib import format as npy

NUMBERS = "biuf"  # kinds of NumPy's types
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST = 300  # characters of a reason
NO_MEMORY = "there is not enough memory for it"
NO_FRAMES = "a sequence must be a list of steps, each a list of numbers"


class ReadError(ValueError):
    """A file that holds no sequences; names the file and the reason, on one line."""


Asked = tuple[list[np.ndarray], str | None, int | None]


def read(path: Path) -> Asked:
    """The sequences [T, F] of a file; and the model and top_k of a request's.

    Raises:
        ReadError: no such file, another format, not numbers, deeper or larger than can
            be read, or an array whose header doesn't fit the file.
    """
    try:
        return _read(path)
    except MemoryError:
        reason = NO_MEMORY
    except RecursionError:
        reason = "it is nested too deeply"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        csv.Error,
    ) as error:
        reason = " ".join(str(error).split())[:LONGEST]
    raise ReadError(f"{path}: {reason}")


def _read(path: Path) -> Asked:
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return [_frames(_array(file))], None, None
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
        return [_frames(frames) for frames in value["sequences"]], *_chosen(value)
    return [_frames(value)], None, None


def _chosen(request: dict[str, Any]) -> tuple[str | None, int | None]:
    model, top_k = request.get("model"), request.get("top_k")
    if model is not None and not isinstance(model, str):
        raise ValueError("the model must be a name")
    if top_k is not None and not isinstance(top_k, int):
        raise ValueError("top_k must be a number")
    orjson.dumps(
        [model, top_k]
    )  # raises of what can't be sent, such as half a character
    return model, top_k


def _array(file: BinaryIO) -> np.ndarray:
    """The array of a .npy file, and no memory but for what is in the file: its header
    may say anything."""
    shape, fortran, kind = _header(file)
    if kind.kind not in NUMBERS:
        raise ValueError(f"its values are no numbers but {kind}")
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(NO_FRAMES)
    count = math.prod(shape)
    there = os.fstat(file.fileno()).st_size - file.tell()
    if count * kind.itemsize != there:
        said = f"{count * kind.itemsize} bytes of numbers"
        raise ValueError(f"its header promises {said}, and there are {there}")
    values: np.ndarray = np.fromfile(file, kind, count)
    return values.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is parsed as Python
            header: tuple[tuple[int, ...], bool, np.dtype[Any]]
            header = HEADERS[npy.read_magic(file)](file)
            return header
    except Exception as error:  # whatever Python's parser raises, MemoryError, too
        raise ValueError(f"its header can't be read: {error}") from None


def _frames(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        frames = np.asarray(values, np.float32)
    if not np.isfinite(frames).all():
        raise ValueError("every number must be finite in float32")
    if frames.ndim != 2 or not frames.shape[1]:
        raise ValueError(NO_FRAMES)
    return frames
