"""Read the sequences of a request in JSON, or of a .npy file."""

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

from model.datasets import readers

NUMBER_KINDS = "biuf"  # of NumPy's types
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
MAX_REASON = 300  # characters
NO_MEMORY = "not enough memory to read the file"
NO_FRAMES = "a sequence must be a list of steps, each a list of numbers"


class ReadError(ValueError):
    """The file can't be read as sequences; one line with the file and the reason."""


# The sequences, texts, lists of words or of records; the model and `top_k`.
Request = tuple[list[Any], str | None, int | None]
ENCODED = ("texts", "tokens", "records")  # fields of a request in place of sequences


def is_table(path: Path) -> bool:
    """Returns whether a file is of a format that training reads, too."""
    return path.suffix.lower() in readers.FORMATS


def read(path: Path) -> Request:
    """The sequences [T, F] of another file, and `model` and `top_k` if it is a request;
    `-` is standard input, which may also hold a text a line.

    Raises:
        ReadError: no such file, values that are not numbers, too
            deeply nested, too large, or an array whose header doesn't match its size.
    """
    try:
        return _read(path)
    except MemoryError:
        reason = NO_MEMORY
    except RecursionError:
        reason = "nested too deeply"
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
    raise ReadError(f"{path}: {reason}")


def read_lines(path: Path) -> list[str]:
    """The texts of a file, one a line; empty lines are left out.

    Raises:
        ReadError: no such file, or it is not UTF-8.
    """
    try:
        return _lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path}: {error}") from None


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _read(path: Path) -> Request:
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return [_frames(_array(file))], None, None
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        start = len(text) - len(text.lstrip())
        if str(path) != "-" or (text.lstrip()[:1] in "{[" and error.pos > start + 1):
            raise
        return _lines(text), None, None
    if isinstance(value, dict) and (name := _encoded(value)):
        if not isinstance(value[name], list):
            raise ValueError(f"{name} must be a list")
        return value[name], *_options(value)
    if isinstance(value, dict):
        return [_frames(frames) for frames in value["sequences"]], *_options(value)
    return [_frames(value)], None, None


def _encoded(request: dict[str, Any]) -> str | None:
    return next((name for name in ENCODED if name in request), None)


def _options(request: dict[str, Any]) -> tuple[str | None, int | None]:
    model, top_k = request.get("model"), request.get("top_k")
    if model is not None and not isinstance(model, str):
        raise ValueError("the model must be a name")
    if top_k is not None and not isinstance(top_k, int):
        raise ValueError("top_k must be a number")
    orjson.dumps([model, top_k])  # raises for what can't be sent, e.g. a lone surrogate
    return model, top_k


def _array(file: BinaryIO) -> np.ndarray:
    """The array of a .npy file.

    The header may promise any size, so it is compared with the file's size before
    memory is allocated."""
    shape, fortran, dtype = _header(file)
    if dtype.kind not in NUMBER_KINDS:
        raise ValueError(f"values must be numbers, not {dtype}")
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(NO_FRAMES)
    count = math.prod(shape)
    expected = count * dtype.itemsize
    size = os.fstat(file.fileno()).st_size - file.tell()
    if expected != size:
        raise ValueError(f"the header promises {expected} bytes of numbers, not {size}")
    values: np.ndarray = np.fromfile(file, dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy parses it as Python
            header: tuple[tuple[int, ...], bool, np.dtype[Any]]
            header = HEADERS[npy.read_magic(file)](file)
            return header
    except Exception as error:  # Python's parser raises MemoryError and others too
        raise ValueError(f"the header can't be read: {error}") from None


def _frames(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        frames = np.asarray(values, np.float32)
    if not np.isfinite(frames).all():
        raise ValueError("every number must be finite in float32")
    if frames.ndim != 2 or not frames.shape[1]:
        raise ValueError(NO_FRAMES)
    return frames
