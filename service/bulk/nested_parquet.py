"""Read nested Parquet: a sequence in each row, a shard in each row group.

frames   list of steps, each a list of numbers, or a struct with a member for each feature
id       text or whole numbers, optional
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet, types
from pyarrow.fs import FileSystem

from model.datasets.readers import parquet_pages
from service.bulk.rows import Row, match_features

# Limits of a row group: a thousand bytes of Parquet can decode to gigabytes.
MAX_ROWS = 2**21  # twice the default of PyArrow's writer
MAX_NUMBERS = 2**26  # a quarter of a gigabyte in float32, for each core
MAX_BYTES = 2**30
BATCH_NUMBERS = 2**20  # decoded at a time, or one sequence if it is longer
MAX_ID_LENGTH = 1_000


class ParquetFile:
    """A Parquet file."""

    def __init__(self, system: FileSystem, path: str, features: Sequence[str]):
        self._system, self._path, self._count = system, path, len(features)
        with system.open_input_file(path) as file:
            opened = parquet.ParquetFile(file)
            self.count: int = opened.num_row_groups
            schema = opened.schema_arrow
            metadata = opened.metadata
        if schema.names.count("frames") != 1:
            names = ", ".join(schema.names)
            raise ValueError(f"{path}: needs one column frames; there are: {names}")
        step = _inner(schema.field("frames").type)
        self._members: tuple[str, ...] = ()  # if steps have names for their numbers
        if step is not None and types.is_struct(step):
            for member in step:
                # Text takes any size when it is decoded.
                if not types.is_primitive(member.type):
                    reason = f"{member.name!r:.40} holds {member.type}; leave it out"
                    raise ValueError(f"{path}: steps: {reason}")
            try:
                self._members = match_features(
                    tuple(f.name for f in step), tuple(features)
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        cells = [step.field(name).type for name in self._members] or [_inner(step)]
        if not all(map(_is_number, cells)):
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
                yield from _sequences(batch, self._members)

    def _check(
        self, file: pa.NativeFile, chunk: parquet.ColumnChunkMetaData, number: int
    ) -> None:
        """Raise ValueError if the pages hold more than the footer says."""
        values, size = parquet_pages.measure_chunk(file, chunk)
        if values > chunk.num_values or size > MAX_BYTES:
            reason = f"row group {number} holds more than the file's footer says"
            raise ValueError(f"{self._path}: {reason}")

    def parse(self, item: tuple[Any, np.ndarray | None]) -> Row:
        name, frames = item
        if isinstance(name, str) and len(name) > MAX_ID_LENGTH:
            reason = f"id must have at most {MAX_ID_LENGTH:,} characters"
            return Row(None, None, reason)
        if frames is None:
            return Row(name, None, "frames must be steps of equally many numbers")
        if frames.shape[1] != self._count:
            width, takes = frames.shape[1], f"the model takes {self._count}"
            return Row(name, None, f"frames has {width} features, {takes}")
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
    numbers = max(1, sum(chunk.num_values for chunk in _chunks(group, "frames")))
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


def _sequences(
    batch: pa.RecordBatch, members: tuple[str, ...]
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """The id and the frames [T, F] of each row; None if they don't have that shape.

    Args:
        members: of each step, in the order of the features; (): steps are lists.
    """
    ids = _ids(batch.column("id")) if "id" in batch.schema.names else None
    steps, inner = _unpack(batch.column("frames"))  # [N + 1]
    if members:
        columns = dict(zip((f.name for f in inner.type), inner.flatten(), strict=True))
        # Null becomes NaN.
        arrays = [columns[name].to_numpy(zero_copy_only=False) for name in members]
        values = np.stack(arrays, axis=1)
    else:
        cells, numbers = _unpack(inner)  # [steps + 1]
        values = numbers.to_numpy(zero_copy_only=False)
    for at, (begin, end) in enumerate(pairwise(steps)):
        frames = None
        if members:
            frames = values[begin:end] if begin < end else None
        else:
            widths = np.diff(cells[begin : end + 1])
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


def _is_number(kind: Any) -> bool:
    return kind is not None and (types.is_integer(kind) or types.is_floating(kind))
