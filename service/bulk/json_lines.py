"""A file of JSON lines, each of which is a sequence of frames."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson
from pyarrow.fs import FileSystem

from model.datasets.readers import table_layout
from service.bulk.rows import Row, match_features
from service.codecs import validation
from service.errors import ServiceError
from service.settings import Limits

SHARD_BYTES = 4 * 2**20  # of lines; an interrupted run loses at most a shard per core
NUMBERS = (int, float)
NO_LIMITS = Limits(1, sys.maxsize, sys.maxsize)  # a job competes with nobody


class Line(msgspec.Struct):
    """The members of a line that are read."""

    frames: list[list[float] | dict[str, Any] | float]
    id: str | int | None = None


class JsonLinesFile:
    """A file of JSON lines, each of which is a sequence."""

    def __init__(
        self, system: FileSystem, path: str, size: int, features: Sequence[str]
    ):
        self._system, self._path, self._size = system, path, size
        self._features = tuple(features)
        self._matched: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.count = -(-size // SHARD_BYTES)

    def has_steps(self) -> bool:
        """Returns whether the lines are steps, not sequences, judging by the first one."""
        first = next(self.read(0), b"") if self.count else b""
        try:
            record = orjson.loads(first)
        except ValueError:
            return False
        if not isinstance(record, dict) or {"frames", "labels"} & set(record):
            return False
        numbers = [value for value in record.values() if type(value) in NUMBERS]
        return len(numbers) >= len(self._features)

    def read(self, number: int) -> Iterator[bytes]:
        start, stop = number * SHARD_BYTES, min((number + 1) * SHARD_BYTES, self._size)
        with self._system.open_input_file(self._path) as file:
            # Read one byte more: if it ends a line, our first line begins at `start`.
            at = max(start - 1, 0)
            data = file.read_at(stop - at, at)
            begin = data.find(b"\n") + 1 if start else 0
            if start and not begin:
                return  # the shard lies within one line
            parts, end = [data], stop
            while end < self._size and not parts[-1].endswith(b"\n"):
                more = file.read_at(SHARD_BYTES, end)
                if not more:
                    raise OSError(f"{self._path}: has become shorter")
                cut = more.find(b"\n") + 1 or len(more)
                parts.append(more[:cut])
                end += cut
            data = b"".join(parts)
        if not start:
            data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
        for line in data[begin:].split(b"\n"):
            if line.strip():
                yield line

    def parse(self, item: bytes) -> Row:
        name = None
        try:
            line = validation.decode_json(_decoder, item, "line")
            if isinstance(line.id, int) and not -(2**63) <= line.id < 2**64:
                return Row(None, None, "id must have at most 64 bits")
            name = line.id
            (frames,) = validation.to_arrays(
                ["frames"], [self._steps(line.frames)], len(self._features), NO_LIMITS
            )
        except ServiceError as error:
            return Row(name, None, reason_of(error))
        except ValueError as error:
            return Row(name, None, str(error))
        return Row(name, frames)

    def _steps(self, frames: list[Any]) -> list[list[float]]:
        """The steps of a sequence as lists, in the order of the features.

        Raises:
            ValueError: the steps are of different kinds, or a feature is missing.
        """
        kinds = set(map(type, frames))
        if kinds <= {list}:
            return frames
        if kinds == {float}:  # of one feature
            return [[number] for number in frames]
        if kinds != {dict}:
            raise ValueError("frames must be all lists, all objects or all numbers")
        header = tuple(frames[0])
        if header != self._matched[0]:
            self._matched = (header, match_features(header, self._features))
        names = self._matched[1]
        return [_numbers(step, names, place) for place, step in enumerate(frames)]


def _numbers(step: dict[str, Any], names: Sequence[str], place: int) -> list[float]:
    """The features of a step."""
    for name in names:
        if name not in step:
            reason = table_layout.missing(name, list(step), "feature")
            raise ValueError(f"frames[{place}]: {reason}")
        if type(step[name]) not in NUMBERS:
            raise ValueError(f"frames[{place}][{name!r:.40}] must be a number")
    try:
        return [float(step[name]) for name in names]
    except OverflowError:
        raise ValueError(f"frames[{place}] must be finite in float32") from None


_decoder = msgspec.json.Decoder(Line)


def reason_of(error: ServiceError) -> str:
    errors = "; ".join(f"{field.path} {field.message}" for field in error.errors[:3])
    return errors or error.detail
