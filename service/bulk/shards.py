"""Split a file of any size into shards, each of which any machine can read alone.

.jsonl, .ndjson   an object per line, {"frames": [[...], ...]} and optionally "id"; other
                  members are ignored. A shard is the lines that begin within its bytes.
.parquet          a sequence per row: the column frames, a list of lists of numbers, and
                  optionally id. A shard is a row group, whose size is limited.
"""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet, types
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from model.datasets.readers import parquet_pages
from service.bulk import object_store
from service.codecs import validation
from service.errors import ServiceError
from service.settings import Limits

SHARD_BYTES = 4 * 2**20  # of lines; an interrupted run loses at most a shard per core
# Limits of a row group: a thousand bytes of Parquet can decode to gigabytes.
MAX_ROWS = 2**21  # twice the default of PyArrow's writer
MAX_NUMBERS = 2**26  # a quarter of a gigabyte in float32, for each core
MAX_BYTES = 2**30
BATCH_NUMBERS = 2**20  # decoded at a time, or one sequence if it is longer
MAX_ID_LENGTH = 1_000
NO_LIMITS = Limits(1, sys.maxsize, sys.maxsize)  # a job competes with nobody


class Line(msgspec.Struct):
    """The members of a line that are read."""

    frames: list[list[float]]
    id: str | int | None = None


class Row(NamedTuple):
    """A sequence, or the reason why a line or row holds none."""

    id: str | int | None
    frames: np.ndarray | None  # [T, F] float32
    reason: str = ""


class ShardedFile(Protocol):
    """A file of which each shard can be read alone."""

    count: int

    def read(self, number: int) -> Iterator[Any]:
        """The items of a shard, one per sequence, as `parse` takes them."""
        ...

    def parse(self, item: Any, features: int) -> Row:
        """The sequence in an item, for a model with this number of features."""
        ...


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


def open_file(location: str) -> ShardedFile:
    """Open a file by its ending.

    Raises:
        ValueError, OSError: no such file, or an unknown format.
    """
    size, _ = stamp(location)
    system, path = filesystem(location)
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLinesFile(system, path, size)
    if suffix == ".parquet":
        try:
            return ParquetFile(system, path)
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {error}") from None
    known = ".jsonl, .ndjson, .parquet"
    raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")


class JsonLinesFile:
    """A file of JSON lines."""

    def __init__(self, system: FileSystem, path: str, size: int):
        self._system, self._path, self._size = system, path, size
        self.count = -(-size // SHARD_BYTES)

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

    def parse(self, item: bytes, features: int) -> Row:
        name = None
        try:
            line = validation.decode_json(_decoder, item, "line")
            if isinstance(line.id, int) and not -(2**63) <= line.id < 2**64:
                return Row(None, None, "id must have at most 64 bits")
            name = line.id
            (frames,) = validation.to_arrays(
                ["frames"], [line.frames], features, NO_LIMITS
            )
        except ServiceError as error:
            return Row(name, None, _reason(error))
        return Row(name, frames)


class ParquetFile:
    """A Parquet file."""

    def __init__(self, system: FileSystem, path: str):
        self._system, self._path = system, path
        with system.open_input_file(path) as file:
            opened = parquet.ParquetFile(file)
            self.count: int = opened.num_row_groups
            schema = opened.schema_arrow
            metadata = opened.metadata
        if schema.names.count("frames") != 1:
            names = ", ".join(schema.names)
            raise ValueError(f"{path}: needs one column frames; there are: {names}")
        cells = _inner(_inner(schema.field("frames").type))
        if cells is None or not (types.is_integer(cells) or types.is_floating(cells)):
            raise ValueError(f"{path}: frames must be lists of lists of numbers")
        self._columns = ["frames"]
        if schema.names.count("id") == 1:
            self._columns.append("id")
            kind = schema.field("id").type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_integer(kind) or kind in (pa.string(), pa.large_string())):
                raise ValueError(f"{path}: id must be text or whole numbers")
        groups = [metadata.row_group(number) for number in range(self.count)]
        self._batch_rows = [_batch_rows(g, path, n) for n, g in enumerate(groups)]
        # As a dictionary, a long id that many rows share is in memory once.
        delta = any(map(_has_delta_ids, groups))
        self._dictionaries = [] if delta else self._columns[1:]

    def read(self, number: int) -> Iterator[tuple[Any, np.ndarray | None]]:
        with self._system.open_input_file(self._path) as file:
            opened = parquet.ParquetFile(file, read_dictionary=self._dictionaries)
            for name in self._columns:
                for chunk in _chunks(opened.metadata.row_group(number), name):
                    self._check(file, chunk, number)
            for batch in opened.iter_batches(
                self._batch_rows[number], row_groups=[number], columns=self._columns
            ):
                yield from _sequences(batch)

    def _check(
        self, file: pa.NativeFile, chunk: parquet.ColumnChunkMetaData, number: int
    ) -> None:
        """Raise ValueError if the pages hold more than the footer says."""
        values, size = parquet_pages.measure_chunk(file, chunk)
        if values > chunk.num_values or size > MAX_BYTES:
            reason = f"row group {number} holds more than the file's footer says"
            raise ValueError(f"{self._path}: {reason}")

    def parse(self, item: tuple[Any, np.ndarray | None], features: int) -> Row:
        name, frames = item
        if isinstance(name, str) and len(name) > MAX_ID_LENGTH:
            reason = f"id must have at most {MAX_ID_LENGTH:,} characters"
            return Row(None, None, reason)
        if frames is None:
            return Row(name, None, "frames must be steps of equally many numbers")
        if frames.shape[1] != features:
            reason = (
                f"frames has {frames.shape[1]} features, the model takes {features}"
            )
            return Row(name, None, reason)
        with np.errstate(over="ignore"):
            frames = frames.astype(np.float32)
        if not np.isfinite(frames).all():
            return Row(name, None, "frames must be finite in float32")
        return Row(name, frames)


def _batch_rows(group: parquet.RowGroupMetaData, path: str, number: int) -> int:
    """The number of rows of a row group to decode at a time.

    Raises:
        ValueError: the group is too large, by the file's footer.
    """
    rows: int = group.num_rows
    numbers = max([1, *(chunk.num_values for chunk in _chunks(group, "frames"))])
    chunks = [*_chunks(group, "frames"), *_chunks(group, "id")]
    encoded = max([1, *(chunk.total_uncompressed_size for chunk in chunks)])
    for size, limit, unit in (
        (rows, MAX_ROWS, "rows"),
        (numbers, MAX_NUMBERS, "numbers in frames"),
        (encoded, MAX_BYTES, "bytes of a column"),
    ):
        if size > limit:
            reason = f"{size:,} {unit} in row group {number}, at most {limit:,}"
            raise ValueError(f"{path}: {reason}; write smaller row groups")
    batch_rows: int = min(rows, rows * BATCH_NUMBERS // numbers)
    if _has_delta_ids(group):
        batch_rows = min(batch_rows, MAX_BYTES // encoded)
    return max(1, batch_rows)


def _chunks(group: parquet.RowGroupMetaData, name: str) -> Iterator[Any]:
    """The chunks of a column of a row group; a nested column has one for each leaf."""
    for chunk in map(group.column, range(group.num_columns)):
        if chunk.path_in_schema.partition(".")[0] == name:
            yield chunk


def _has_delta_ids(group: parquet.RowGroupMetaData) -> bool:
    """Returns true if ids are stored as differences from the previous one.

    Then each may be as long as the whole column, and PyArrow can't make a dictionary."""
    chunks = [c for c in _chunks(group, "id") if c.physical_type == "BYTE_ARRAY"]
    return any(name.startswith("DELTA") for c in chunks for name in c.encodings)


def _sequences(batch: pa.RecordBatch) -> Iterator[tuple[Any, np.ndarray | None]]:
    """The id and the frames [T, F] of each row; None if they don't have that shape."""
    ids = _ids(batch.column("id")) if "id" in batch.schema.names else None
    steps, inner = _unpack(batch.column("frames"))  # [N + 1]
    cells, numbers = _unpack(inner)  # [steps + 1]
    values = numbers.to_numpy(zero_copy_only=False)  # null becomes NaN
    for at, (begin, end) in enumerate(pairwise(steps)):
        widths = np.diff(cells[begin : end + 1])
        frames = None
        if len(widths) and (widths == widths[0]).all() and widths[0]:
            frames = values[cells[begin] : cells[end]].reshape(len(widths), -1)
        yield ids[at] if ids else None, frames


def _unpack(lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The offsets [N + 1] of lists in their joined values, and the values."""
    if types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    return lists.offsets.to_numpy(), lists.values


def _ids(column: pa.Array) -> list[Any]:
    """Ids as Python values; equal ids are one object, since they may be long."""
    if not types.is_dictionary(column.type):
        ids: list[Any] = column.to_pylist()
        return ids
    places = column.indices.fill_null(-1).to_numpy()
    used, inverse = np.unique(places, return_inverse=True)
    values = column.dictionary.take(pa.array(used, mask=used < 0)).to_pylist()
    return [values[place] for place in inverse]


def _inner(kind: Any) -> Any:
    """The type of a list's values; None if the type is not a list."""
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return kind.value_type if kind is not None and any(f(kind) for f in lists) else None


_decoder = msgspec.json.Decoder(Line)


def _reason(error: ServiceError) -> str:
    errors = "; ".join(f"{field.path} {field.message}" for field in error.errors[:3])
    return errors or error.detail
