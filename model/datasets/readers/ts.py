"""Read .ts files of the UEA and UCR archives: a header, then one case on each line.

@dimensions 2
@classLabel true up down
@data
0.1,0.3:2,4:up          dimension : dimension : class
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.datasets.dataset import default_features
from model.datasets.readers import files
from model.datasets.readers.sequences import Labels, Sequences
from model.datasets.readers.table_layout import OPTIONS, Expected, refuse


def read(path: Path, expected: Expected) -> Sequences:
    """Read the cases. Names that end in _TRAIN or _TEST assign no part."""
    if expected.task == "label":
        reason = "a .ts file has one class a sequence; task label needs one a step"
        raise files.ReadError(path, None, reason)
    try:
        refuse(expected.columns, OPTIONS, "a .ts file has no names of columns")
    except ValueError as error:
        raise files.ReadError(path, None, str(error)) from None
    numbered = (
        (line, text.strip())
        for line, text in files.numbered_lines(path)
        if text.strip() and not text.lstrip().startswith("#")
    )
    header = _Header(path, numbered, expected.training)
    names = Labels(header.classes)
    frames: list[np.ndarray] = []
    codes: list[int] = []
    for line, text in numbered:
        dimensions = text.split(":")
        try:
            if header.classes:
                label = dimensions.pop().strip()
                if label not in header.classes:
                    reason = f"class {label!r:.40} is not declared by @classLabel"
                    raise ValueError(reason)
                codes.append(names.encode(label))
            frames.append(_case(dimensions, header))
        except ValueError as error:
            raise files.ReadError(path, line, str(error)) from None
        # The first case fixes what the header leaves open.
        header.dimensions = header.dimensions or len(dimensions)
    if not frames:
        raise files.ReadError(path, None, "no cases after @data")
    width = frames[0].shape[1]
    features = expected.features
    if features is not None and len(features) != width:
        reason = f"{width} dimensions; the network takes {len(features)} features"
        raise files.ReadError(path, None, reason)
    return Sequences(
        path=path,
        ids=tuple(map(str, range(1, len(frames) + 1))),
        frames=np.concatenate(frames),
        lengths=np.array([len(case) for case in frames]),
        features=tuple(features or default_features(width)),
        labels=names.targets(codes) if header.classes else None,
        classes=names.classes,
        task="classify" if header.classes else None,
    )


class _Header:
    """The header: the lines up to @data."""

    def __init__(self, path: Path, numbered: Iterator[tuple[int, str]], training: bool):
        self._training = training
        self.classes: tuple[str, ...] = ()
        self.dimensions: int | None = None
        self.length: int | None = None
        for line, text in numbered:
            key, *words = text.split()
            if key.lower() == "@data":
                break
            try:
                self._add(key.lower(), words)
            except ValueError as error:
                raise files.ReadError(path, line, str(error)) from None
        else:
            raise files.ReadError(path, None, "no line @data")
        if training and not self.classes:
            reason = "no line '@classLabel true' with the classes before @data"
            raise files.ReadError(path, line, reason)

    def _add(self, key: str, words: list[str]) -> None:
        first = words[0].lower() if words else ""
        if not key.startswith("@"):
            raise ValueError("expected a line that begins with @, or @data before it")
        if key == "@timestamps" and first == "true":
            raise ValueError("time stamps are not supported; give evenly spaced values")
        if key == "@targetlabel" and first == "true":
            raise ValueError("a target value is regression; only classes are learnt")
        if key == "@univariate" and first == "true":
            self.dimensions = 1
        if key in ("@dimension", "@dimensions"):
            self.dimensions = _count(first)
        if key == "@serieslength":
            self.length = _count(first)
        if key == "@classlabel":
            if first != "true" and self._training:
                raise ValueError("the file has no classes to learn")
            self.classes = tuple(words[1:]) if first == "true" else ()
            if len(set(self.classes)) != len(self.classes):
                raise ValueError("a class is repeated")


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"{word!r:.40} is not a count")
    return int(word)


def _case(dimensions: list[str], header: _Header) -> np.ndarray:
    """Parse the dimensions of a case to frames, [T, F] float32."""
    expected = header.dimensions or len(dimensions)
    if not dimensions or len(dimensions) != expected:
        raise ValueError(f"{len(dimensions)} dimensions; expected {expected or 1}")
    series = [_series(text, place) for place, text in enumerate(dimensions, 1)]
    for place, values in enumerate(series, 1):
        if len(values) != len(series[0]):
            lengths = f"{len(values)} values, dimension 1 has {len(series[0])}"
            raise ValueError(f"dimension {place} has {lengths}")
    if header.length not in (None, len(series[0])):
        length = header.length
        raise ValueError(f"{len(series[0])} values; @seriesLength is {length}")
    return np.stack(series, axis=1)


def _series(text: str, place: int) -> np.ndarray:
    """Parse one dimension, [T] float32."""
    if "(" in text:
        raise ValueError(f"dimension {place} has time stamps, which are not supported")
    cells = text.split(",")
    if "?" in map(str.strip, cells):
        raise ValueError(f"dimension {place} has a missing value")
    try:
        if "_" in text:  # Python reads 1_0 as 10.
            raise ValueError
        with np.errstate(over="ignore"):
            values = np.array(list(map(float, cells))).astype(np.float32)
    except ValueError:
        raise ValueError(f"dimension {place} holds text or an empty value") from None
    if not np.isfinite(values).all():
        raise ValueError(f"dimension {place} holds NaN or an infinite value")
    return values
