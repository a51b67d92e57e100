"""A file of any size in shards: each can be read by itself, on any machine.

.jsonl, .ndjson   an object a line, {"frames": [[...], ...]} and perhaps an "id"; what else
                  it has is passed over. A shard is the lines that begin in its bytes.
.parquet          a row a sequence, with the column frames, a list of lists of numbers, and
                  perhaps id. A shard is a row group, of bounded size.
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

BYTES = 4 * 2**20  # of a shard of lines; a run that is cut off loses some of these
# Of a row group: a thousand bytes of Parquet can stand for gigabytes of one number.
MOST_ROWS = 2**21  # twice as many as Arrow writes, unless it is told to
MOST_NUMBERS = 2**26  # a quarter of a gigabyte in float32, for each core
MOST_BYTES = 2**30
BATCH = 2**20  # numbers that are decoded at a time, as far as sequences allow
LONGEST_ID = 1_000
ANY = Limits(1, sys.maxsize, sys.maxsize)  # nobody else waits


class Line(msgspec.Struct):
    """What is read of a line."""

    frames: list[list[float]]
    id: str | int | None = None


class Row(NamedTuple):
    """A sequence, or why there is none."""

    id: str | int | None
    frames: np.ndarray | None  # [T, F] float32
    reason: str = ""


class Shards(Protocol):
    """A file, of which each shard can be read by itself."""

    count: int

    def read(self, number: int) -> Iterator[Any]:
        """Its sequences as they stand there: for `row`."""
        ...

    def row(self, given: Any, features: int) -> Row:
        """One of them for a model of so many features."""
        ...


def whole(where: str) -> str:
    """A path that means the same from everywhere; `s3://...` does."""
    return where if object_store.elsewhere(where) else str(Path(where).absolute())


def place(where: str) -> tuple[FileSystem, str]:
    """The file system of a path or of `s3://...`, and the path within it.

    Raises:
        ValueError, OSError: it can't be understood, or reached.
    """
    if object_store.elsewhere(where):
        try:
            system, path = FileSystem.from_uri(where)
        except (pa.ArrowException, ImportError) as error:
            raise ValueError(f"{object_store.shown(where)}: {error}") from None
        return system, path
    return LocalFileSystem(), whole(where)


def stamp(where: str) -> tuple[int, int]:
    """Size and time of a file: what changes when it does.

    Raises:
        ValueError, OSError: no such file.
    """
    system, path = place(where)
    about = system.get_file_info(path)
    if about.type != FileType.File:
        raise FileNotFoundError(
            f"{object_store.shown(where)}: no such file, as seen from here"
        )
    return about.size, about.mtime_ns or 0


def of(where: str) -> Shards:
    """The shards of a file.

    Raises:
        ValueError, OSError: no such file, or another format.
    """
    size, _ = stamp(where)
    system, path = place(where)
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return Lines(system, path, size)
    if suffix == ".parquet":
        try:
            return Groups(system, path)
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {error}") from None
    known = ".jsonl, .ndjson, .parquet"
    raise ValueError(f"{path}: of {suffix or 'no'} format; known are {known}")


class Lines:
    """JSON Lines."""

    def __init__(self, system: FileSystem, path: str, size: int):
        self._system, self._path, self._size = system, path, size
        self.count = -(-size // BYTES)

    def read(self, number: int) -> Iterator[bytes]:
        start, stop = number * BYTES, min((number + 1) * BYTES, self._size)
        with self._system.open_input_file(self._path) as file:
            # From the byte before: where that ends a line, the first of ours begins.
            at = max(start - 1, 0)
            data = file.read_at(stop - at, at)
            begin = data.find(b"\n") + 1 if start else 0
            if start and not begin:
                return  # all of it is the midst of a line
            parts, end = [data], stop
            while end < self._size and not parts[-1].endswith(b"\n"):
                more = file.read_at(BYTES, end)
                if not more:
                    raise OSError(f"{self._path}: has become shorter")
                cut = more.find(b"\n") + 1 or len(more)
                parts.append(more[:cut])
                end += cut
            data = b"".join(parts)
        if not start:
            data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        for line in data[begin:].split(b"\n"):
            if line.strip():
                yield line

    def row(self, given: bytes, features: int) -> Row:
        name = None
        try:
            line = validation.decode_json(_decoder, given, "line")
            if isinstance(line.id, int) and not -(2**63) <= line.id < 2**64:
                return Row(None, None, "id must be of at most 64 bits")
            name = line.id
            (frames,) = validation.to_arrays(["frames"], [line.frames], features, ANY)
        except ServiceError as error:
            return Row(name, None, _told(error))
        return Row(name, frames)


class Groups:
    """Parquet."""

    def __init__(self, system: FileSystem, path: str):
        self._system, self._path = system, path
        with system.open_input_file(path) as file:
            opened = parquet.ParquetFile(file)
            self.count: int = opened.num_row_groups
            schema = opened.schema_arrow
            about = opened.metadata
        if schema.names.count("frames") != 1:
            names = ", ".join(schema.names)
            raise ValueError(f"{path}: no column frames, or two; there are: {names}")
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
        groups = [about.row_group(number) for number in range(self.count)]
        self._batches = [_batch(group, path, n) for n, group in enumerate(groups)]
        # A long text that many rows share is then there once.
        self._dictionaries = [] if any(map(_delta, groups)) else self._columns[1:]

    def read(self, number: int) -> Iterator[tuple[Any, np.ndarray | None]]:
        with self._system.open_input_file(self._path) as file:
            opened = parquet.ParquetFile(file, read_dictionary=self._dictionaries)
            for name in self._columns:
                for chunk in _chunks(opened.metadata.row_group(number), name):
                    self._check(file, chunk, number)
            for batch in opened.iter_batches(
                self._batches[number], row_groups=[number], columns=self._columns
            ):
                yield from _sequences(batch)

    def _check(
        self, file: pa.NativeFile, chunk: parquet.ColumnChunkMetaData, number: int
    ) -> None:
        """ValueError where pages hold more than the footer says."""
        values, size = parquet_pages.measure_chunk(file, chunk)
        if values > chunk.num_values or size > MOST_BYTES:
            told = f"row group {number} holds more than the file says of it"
            raise ValueError(f"{self._path}: {told}")

    def row(self, given: tuple[Any, np.ndarray | None], features: int) -> Row:
        name, frames = given
        if isinstance(name, str) and len(name) > LONGEST_ID:
            told = f"id must be of at most {LONGEST_ID:,} characters"
            return Row(None, None, told)
        if frames is None:
            return Row(name, None, "frames must be steps of as many numbers each")
        if frames.shape[1] != features:
            told = f"frames has {frames.shape[1]} features, the model takes {features}"
            return Row(name, None, told)
        with np.errstate(over="ignore"):
            made = frames.astype(np.float32)
        if not np.isfinite(made).all():
            return Row(name, None, "frames must be finite in float32")
        return Row(name, made)


def _batch(group: parquet.RowGroupMetaData, path: str, number: int) -> int:
    """Returns how many rows of a row group are decoded at a time.

    Raises:
        ValueError: by what the file says of it, the group is too large.
    """
    rows: int = group.num_rows
    numbers = max([1, *(chunk.num_values for chunk in _chunks(group, "frames"))])
    chunks = [*_chunks(group, "frames"), *_chunks(group, "id")]
    encoded = max([1, *(chunk.total_uncompressed_size for chunk in chunks)])
    for found, bound, what in (
        (rows, MOST_ROWS, "rows"),
        (numbers, MOST_NUMBERS, "numbers in frames"),
        (encoded, MOST_BYTES, "bytes of a column"),
    ):
        if found > bound:
            told = f"{found:,} {what} in row group {number}, at most {bound:,}"
            raise ValueError(f"{path}: {told}; write smaller row groups")
    most: int = min(rows, rows * BATCH // numbers)
    if _delta(group):
        most = min(most, MOST_BYTES // encoded)
    return max(1, most)


def _chunks(group: parquet.RowGroupMetaData, name: str) -> Iterator[Any]:
    """A column of a row group, or the leaves of one that is nested."""
    for chunk in map(group.column, range(group.num_columns)):
        if chunk.path_in_schema.partition(".")[0] == name:
            yield chunk


def _delta(group: parquet.RowGroupMetaData) -> bool:
    """Whether an id may be what it shares with the one before, and a little more: each
    may be as long as the whole column, and Arrow makes no dictionary of them."""
    chunks = [c for c in _chunks(group, "id") if c.physical_type == "BYTE_ARRAY"]
    return any(name.startswith("DELTA") for c in chunks for name in c.encodings)


def _sequences(batch: pa.RecordBatch) -> Iterator[tuple[Any, np.ndarray | None]]:
    """The id and the frames [T, F] of each row; None where they are of no such shape."""
    ids = _ids(batch.column("id")) if "id" in batch.schema.names else None
    steps, inner = _unpacked(batch.column("frames"))  # [N + 1]
    cells, numbers = _unpacked(inner)  # [steps + 1]
    values = numbers.to_numpy(zero_copy_only=False)  # NaN where it is null
    for at, (begin, end) in enumerate(pairwise(steps)):
        widths = np.diff(cells[begin : end + 1])
        made = None
        if len(widths) and (widths == widths[0]).all() and widths[0]:
            made = values[cells[begin] : cells[end]].reshape(len(widths), -1)
        yield ids[at] if ids else None, made


def _unpacked(lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Where each list begins and ends in what they hold, and that."""
    if types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    return lists.offsets.to_numpy(), lists.values


def _ids(column: pa.Array) -> list[Any]:
    """Ids in Python; those that are alike are one object, since they may be long."""
    if not types.is_dictionary(column.type):
        ids: list[Any] = column.to_pylist()
        return ids
    places = column.indices.fill_null(-1).to_numpy()
    used, inverse = np.unique(places, return_inverse=True)
    found = column.dictionary.take(pa.array(used, mask=used < 0)).to_pylist()
    return [found[place] for place in inverse]


def _inner(kind: Any) -> Any:
    """Of what a list is; None of what is none."""
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return kind.value_type if kind is not None and any(f(kind) for f in lists) else None


_decoder = msgspec.json.Decoder(Line)


def _told(error: ServiceError) -> str:
    faults = "; ".join(f"{one.path} {one.message}" for one in error.errors[:3])
    return faults or error.detail
