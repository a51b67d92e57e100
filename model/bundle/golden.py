"""Golden answers: inputs, and the outputs that every engine must reproduce."""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib import format as npy

# frames [B, T, F], lengths [B], state [B, S] -> probabilities, state [B, S]
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

MAX_BYTES = 2**26  # unpacked: a few sequences take far less
DIRECTORY_ENTRY = b"PK\1\2"  # begins each member's entry in a ZIP file's directory
MAX_MEMBERS = 64  # of the archive; it has 4, and packed bytes may look like an entry
KINDS = {"frames": "f", "lengths": "iu", "probabilities": "f", "state": "f"}


@dataclass(frozen=True, slots=True)
class Golden:
    """Padded input sequences with the expected probabilities and states."""

    frames: np.ndarray  # [N, T, F]
    lengths: np.ndarray  # [N]
    probabilities: np.ndarray  # [N, C] or [N, T, C]
    state: np.ndarray  # [N, S] after the last valid step

    def difference(self, step: Step, sums: slice = slice(0)) -> float:
        """Return the largest absolute difference between `step` and these answers.

        All sequences run in one batch, then each by itself and, if the network has a
        state, each in two halves.

        Args:
            sums: see `Metadata.sums`. Of a sum the difference of the mean counts.
        """
        scale = np.maximum(np.abs(self.state), 1)  # of large numbers the relative one
        if sums.stop > (sums.start or 0):
            count = self.state[:, sums.stop, None]
            scale[:, sums] = np.maximum(scale[:, sums], count)
        rows = np.arange(len(self.lengths))
        batches = (rows, *rows[:, None])
        largest = [self._difference(step, batch, scale) for batch in batches]
        longer = rows[self.lengths > 1]
        if self.state.shape[1] and len(longer):
            largest.append(self._difference(_in_halves(step), longer, scale))
        return max(largest)

    def _difference(self, step: Step, rows: np.ndarray, scale: np.ndarray) -> float:
        lengths = self.lengths[rows]
        frames = self.frames[rows, : lengths.max()]
        probabilities, state = step(frames, lengths, np.zeros_like(self.state[rows]))
        expected = self.probabilities[rows]
        if expected.ndim == 3:
            valid = np.arange(frames.shape[1]) < lengths[:, None]
            expected = expected[:, : frames.shape[1]][valid]
            probabilities = probabilities[valid]
        pairs = [(probabilities, expected)]
        pairs.append((state / scale[rows], self.state[rows] / scale[rows]))
        largest = [np.abs(actual - right).max(initial=0) for actual, right in pairs]
        return float(np.nan_to_num(max(largest), nan=np.inf))

    def save(self, path: Path) -> None:
        """Write the arrays to a file.

        Raises:
            ValueError: `read` would refuse the file.
        """
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **arrays)
        self.read(path.read_bytes())

    @classmethod
    def read(cls, data: bytes, max_bytes: int | None = None) -> Self:
        """Read the arrays from a file's bytes: numbers only, never a pickled object.

        Args:
            max_bytes: limit of `data` and of the unpacked arrays; `MAX_BYTES` if None.

        Raises:
            ValueError: it is not such a file, or its arrays don't fit each other.
        """
        max_bytes = max_bytes or MAX_BYTES
        # `ZipFile` allocates memory for each member before any can be checked.
        if len(data) > max_bytes or data.count(DIRECTORY_ENTRY) > MAX_MEMBERS:
            limits = f"{max_bytes} bytes or {MAX_MEMBERS} members"
            raise ValueError(f"holds more than {limits}")
        names = [field.name for field in fields(cls)]
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                arrays = _read_arrays(archive, names, max_bytes)
        except ValueError:
            raise
        except Exception as error:  # a damaged file raises errors of many kinds
            raise ValueError(f"can't be read: {error}") from None
        answers = cls(**arrays)
        answers._check()
        return answers

    def _check(self) -> None:
        rows, steps, _ = self.frames.shape if self.frames.ndim == 3 else (0, 0, 0)
        shapes = [self.lengths.shape, self.probabilities.shape[:-1], self.state.shape]
        fit = shapes[0] == (rows,) and shapes[1] in ((rows,), (rows, steps))
        if not (rows and fit and shapes[2][:-1] == (rows,)):
            raise ValueError("its arrays don't fit each other")
        if self.lengths.min() < 1 or self.lengths.max() > steps:
            raise ValueError(f"has lengths that are not from 1 to {steps}")


def _read_arrays(
    archive: zipfile.ZipFile, names: list[str], max_bytes: int
) -> dict[str, np.ndarray]:
    members = archive.infolist()
    expected = sorted(f"{name}.npy" for name in names)
    if sorted(member.filename for member in members) != expected:
        raise ValueError(f"holds other arrays than {expected}")
    if sum(member.file_size for member in members) > max_bytes:
        raise ValueError(f"holds more than {max_bytes} bytes")
    return {
        name: _read_array(archive, archive.getinfo(f"{name}.npy")) for name in names
    }


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array. NumPy's own reader allocates whatever size the header claims."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename}: is not compressed as NumPy does it")
    with archive.open(member) as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename}: is of another version than 1.0")
        shape, fortran_order, dtype = npy.read_array_header_1_0(file)
        if dtype.kind not in KINDS[member.filename.removesuffix(".npy")]:
            reason = f"holds {dtype}, not numbers (allow_pickle=False)"
            raise ValueError(f"{member.filename}: {reason}")
        data = file.read(member.file_size)  # unpacks no more than that
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{member.filename}: is not as long as its shape says")
    return np.frombuffer(data, dtype).reshape(
        shape, order="F" if fortran_order else "C"
    )


def _in_halves(step: Step) -> Step:
    """Wrap `step`: run each sequence as two halves, and pass the state between them."""

    def run(frames, lengths, state):
        middles = lengths // 2
        rows = list(zip(range(len(frames)), middles, lengths, strict=True))
        first, state = step(frames[:, : middles.max()], middles, state)
        rest = np.zeros_like(frames)
        for row, middle, end in rows:
            rest[row, : end - middle] = frames[row, middle:end]
        second, state = step(rest, lengths - middles, state)
        if first.ndim == 2:  # classify: the answer after the last step
            return second, state
        joined = np.zeros((*frames.shape[:2], second.shape[2]), second.dtype)
        for row, middle, end in rows:
            joined[row, :middle] = first[row, :middle]
            joined[row, middle:end] = second[row, : end - middle]
        return joined, state

    return run
