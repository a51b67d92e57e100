"""Split a file of any size into shards, each of which any machine can read alone.

.jsonl, .ndjson   an object per line, {"frames": [[...], ...]} and optionally "id"; other
                  members are ignored. A shard is the lines that begin within its bytes.
.parquet          a sequence per row: the column frames, a list of lists of numbers, and
                  optionally id. A shard is a row group, whose size is limited.

Steps may also be objects (in Parquet: structs), which are matched by the names of the
features. A table with a row or line for each step, and every other format of training,
is a `TableFile`.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from model.bundle.metadata import Metadata
from model.datasets import readers
from model.datasets.readers import table_layout
from service.bulk import object_store
from service.bulk.nested_parquet import ParquetFile
from service.bulk.rows import Row, ShardedFile, match_features
from service.bulk.tables import TableFile
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


def absolute(location: str) -> str:
    """An absolute path, or the URI itself."""
    if object_store.is_remote(location):
        return location
    return str(Path(location).absolute())


def filesystem(location: str) -> tuple[FileSystem, str]:
    """The file system of a path or a URI, and the path within it.

    Raises:
        ValueError, OSError: the URI is invalid, or can't be reached.
    """
    if not object_store.is_remote(location):
        return LocalFileSystem(), absolute(location)
    try:
        system, path = FileSystem.from_uri(location)
    except (pa.ArrowException, ImportError) as error:
        # PyArrow's message may repeat the URI.
        message = object_store.without_credentials(f"{location}: {error}")
        raise ValueError(message) from None
    return system, path


def stamp(location: str) -> tuple[int, int]:
    """Size and modification time of a file.

    Raises:
        ValueError, OSError: no such file.
    """
    system, path = filesystem(location)
    info = system.get_file_info(path)
    if info.type != FileType.File:
        name = object_store.without_credentials(location)
        raise FileNotFoundError(f"{name}: no such file on this machine")
    return info.size, info.mtime_ns or 0


def open_file(location: str, metadata: Metadata) -> ShardedFile:
    """Open a file by its ending, for a network.

    Raises:
        ValueError, OSError: no such file, an unknown format, or a table that does not fit
            the network.
    """
    size, _ = stamp(location)
    system, path = filesystem(location)
    suffix = Path(path).suffix.lower()
    if suffix not in readers.FORMATS:
        known = ", ".join(readers.FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    features = metadata.input.names
    try:
        if suffix in (".jsonl", ".ndjson"):
            lines = JsonLinesFile(system, path, size, features)
            if not lines.has_steps():
                return lines
        elif suffix == ".parquet":
            with system.open_input_file(path) as file:
                names = parquet.ParquetFile(file).schema_arrow.names
            if "frames" in names:
                return ParquetFile(system, path, features)
        return TableFile(system, path, metadata)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from None


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
            return Row(name, None, _reason(error))
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


def _reason(error: ServiceError) -> str:
    errors = "; ".join(f"{field.path} {field.message}" for field in error.errors[:3])
    return errors or error.detail
