"""A file that the shared reader reads, and that is split into shards by its sequences."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from pyarrow.fs import FileSystem, LocalFileSystem

from model.bundle.metadata import Metadata
from model.bundle.records import RecordSchema
from model.datasets.readers import Columns, ReadError, from_names, read_sequences
from model.datasets.readers import records as record_reader
from model.datasets.readers.table_layout import RecordOptions
from service.bulk.rows import Row

SHARD_STEPS = 2**16  # about as many as in a shard of lines


class TableFile:
    """A table with a row for each step, or another file that can't be read in parts.

    It is read once, whole, and its sequences stay in memory. An error in it refuses it.
    """

    def __init__(
        self,
        system: FileSystem,
        path: str,
        metadata: Metadata,
        schema: RecordSchema | None = None,
    ):
        """
        Args:
            schema: of a network that reads records.

        Raises:
            ReadError: the file does not fit the network; names the line.
        """
        self._schema = schema
        recorded = from_names(metadata.training.columns)
        with _local(system, path) as local:
            try:
                if schema is not None:
                    options = RecordOptions.of(schema.kinds)
                    table = record_reader.read(local, options, recorded=recorded)
                    self._data = table.with_records()
                else:
                    names = metadata.input.names
                    self._data = read_sequences(
                        local, Columns(), names, recorded=recorded
                    )
            except ReadError as error:
                raise ReadError(path, error.line, error.reason) from None
        shards = self._data.offsets[:-1] // SHARD_STEPS
        starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        self._bounds = [*starts, len(self._data)]
        self.count = len(starts)

    def read(self, number: int) -> Iterator[int]:
        yield from range(self._bounds[number], self._bounds[number + 1])

    def parse(self, item: int) -> Row:
        frames = self._data.inputs[item]
        if self._schema is not None:
            frames, _ = self._schema.encode(frames)
        return Row(self._data.ids[item], frames)


@contextmanager
def _local(system: FileSystem, path: str) -> Iterator[Path]:
    """The path of a file on this machine; one in an object store is copied."""
    if isinstance(system, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"copy{PurePosixPath(path).suffix}")
        with system.open_input_stream(path) as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield copy
