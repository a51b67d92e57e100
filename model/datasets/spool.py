"""Arrays that are too large for memory: in a temporary file, which is mapped into memory.

The operating system reads the parts of a mapped file that are used, and drops them when
memory is needed for other things. The files are in the system's temporary folder
(TMPDIR), have no name, and are gone when the arrays are.
"""

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

LIMIT = 2**28  # bytes; larger arrays of a data set are not kept in memory
BLOCK_BYTES = 2**20  # processed at a time


class SpoolError(OSError):
    """The temporary folder can't hold the data."""


class Rows:
    """Collects the rows of an array: in memory up to a limit, then in a file."""

    def __init__(self, limit: int | None = None) -> None:
        """
        Args:
            limit: in bytes; None: `LIMIT`.
        """
        self._limit = LIMIT if limit is None else limit
        self._blocks: list[np.ndarray] = []
        self._bytes = self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add rows [R, ...]; all have the type and the shape of the first.

        Raises:
            SpoolError: the temporary folder is full.
        """
        self._count += len(rows)
        self._bytes += rows.nbytes
        self._blocks.append(rows)
        if self._file is None and self._bytes > self._limit:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, outlives this call
        if self._file is not None:
            for block in self._blocks:
                self._write(np.ascontiguousarray(block))
            self._blocks = [rows[:0]]

    def array(self) -> np.ndarray:
        """Return all rows; read-only if they are in a file."""
        if self._file is None:
            return np.concatenate(self._blocks)
        self._write(np.zeros(0, np.uint8))
        (empty,) = self._blocks
        shape = (self._count, *empty.shape[1:])
        with self._file as file:  # the mapping stays
            return np.asarray(np.memmap(file, empty.dtype, "r", shape=shape))

    def _write(self, block: np.ndarray) -> None:
        assert self._file is not None
        try:
            self._file.write(block.data)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            reason = (
                f"{error.strerror}: large data is kept in {folder} while it is used"
            )
            raise SpoolError(f"{reason}; name another folder with TMPDIR") from None


def collect(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Join blocks of rows to one array, in memory or in a file."""
    rows = Rows()
    for block in blocks:
        rows.add(block)
    return rows.array()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of an array, some megabytes at a time."""
    size = max(1, array.nbytes // max(len(array), 1))
    rows = max(1, BLOCK_BYTES // size)
    return (array[start : start + rows] for start in range(0, len(array), rows))


def changes(array: np.ndarray) -> np.ndarray:
    """Return the rows that differ from the row before, of an array [R]."""
    size = BLOCK_BYTES
    places = []
    for start in range(1, len(array), size):
        block = array[start - 1 : start + size]
        places.append(start + np.flatnonzero(block[1:] != block[:-1]))
    return np.concatenate([np.zeros(0, np.int64), *places])
