"""A file of any size in shards: each can be read by itself, on any machine.

.jsonl, .ndjson   an object a line, {"frames": [[...], ...]} and perhaps an "id"; what else
                  it has is passed over. A shard is the lines that begin in its bytes.
.parquet          a row a sequence, with the column frames, a list of lists of numbers, and
                  perhaps id. A shard is a row group.
"""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from . import codec, mirror
from .errors import ServiceError
from .settings import Limits

BYTES = 4 * 2**20  # of a shard of lines; a run that is cut off loses some of these
ANY = Limits(1, sys.maxsize, sys.maxsize)  # nobody else waits
NESTED = pa.large_list(pa.large_list(pa.float64()))


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
    return where if mirror.elsewhere(where) else str(Path(where).absolute())


def place(where: str) -> tuple[FileSystem, str]:
    """The file system of a path or of `s3://...`, and the path within it.

    Raises:
        ValueError, OSError: it can't be understood, or reached.
    """
    if mirror.elsewhere(where):
        system, path = FileSystem.from_uri(where)
        return system, path
    return LocalFileSystem(), whole(where)


def of(where: str) -> Shards:
    """The shards of a file.

    Raises:
        ValueError, OSError: no such file, or another format.
    """
    system, path = place(where)
    about = system.get_file_info(path)
    if about.type != FileType.File:
        raise FileNotFoundError(f"{where}: no such file, as seen from here")
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return Lines(system, path, about.size)
    if suffix == ".parquet":
        return Groups(system, path)
    known = ".jsonl, .ndjson, .parquet"
    raise ValueError(f"{where}: of {suffix or 'no'} format; known are {known}")


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
            end = stop
            while end < self._size and not data.endswith(b"\n"):
                more = file.read_at(BYTES, end)
                cut = more.find(b"\n") + 1 or len(more)
                data, end = data + more[:cut], end + cut
        for line in data[begin:].split(b"\n"):
            if line.strip():
                yield line

    def row(self, given: bytes, features: int) -> Row:
        name = None
        try:
            line = codec.decoded(_decoder, given, "line")
            name = line.id
            (frames,) = codec.checked(["frames"], [line.frames], features, ANY)
        except ServiceError as error:
            return Row(name, None, _told(error))
        return Row(name, frames)


class Groups:
    """Parquet."""

    def __init__(self, system: FileSystem, path: str):
        self._system, self._path = system, path
        with system.open_input_file(path) as file:
            try:
                opened = parquet.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path}: {error}") from None
            self.count: int = opened.num_row_groups
            names = set(opened.schema_arrow.names)
        if "frames" not in names:
            raise ValueError(f"{path}: no column frames; there are {sorted(names)}")
        self._columns = ["frames", *{"id"} & names]

    def read(self, number: int) -> Iterator[tuple[Any, np.ndarray | None]]:
        with self._system.open_input_file(self._path) as file:
            opened = parquet.ParquetFile(file)
            table = opened.read_row_group(number, columns=self._columns)
        frames = table["frames"].cast(NESTED).combine_chunks()
        ids = table["id"].to_pylist() if "id" in table.column_names else None
        steps = frames.offsets.to_numpy()  # [N + 1]
        inner = frames.values
        cells = inner.offsets.to_numpy()  # [steps + 1]
        values = inner.values.to_numpy(zero_copy_only=False)  # NaN where it is null
        for at, (begin, end) in enumerate(pairwise(steps)):
            widths = np.diff(cells[begin : end + 1])
            made = None
            if len(widths) and (widths == widths[0]).all() and widths[0]:
                made = values[cells[begin] : cells[end]].reshape(len(widths), -1)
            yield ids[at] if ids else None, made

    def row(self, given: tuple[Any, np.ndarray | None], features: int) -> Row:
        name, frames = given
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


_decoder = msgspec.json.Decoder(Line)


def _told(error: ServiceError) -> str:
    faults = "; ".join(f"{one.path} {one.message}" for one in error.errors[:3])
    return faults or error.detail
