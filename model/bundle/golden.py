"""Answers that every engine must reproduce before it may serve."""

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

MAX_BYTES = 2**26  # unpacked: a few sequences are far less
ENTRY = b"PK\1\2"  # begins each member's entry in the archive's directory
MAX_MEMBERS = 64  # of the archive: 4 are meant; packed bytes may look like one
KINDS = {"frames": "f", "lengths": "iu", "probabilities": "f", "state": "f"}


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs, and the answers that every engine must give for them."""

    frames: np.ndarray  # [N, T, F]
    lengths: np.ndarray  # [N]
    probabilities: np.ndarray  # [N, C] or [N, T, C]
    state: np.ndarray  # [N, S] after the last valid step

    def difference(self, step: Step) -> float:
        """Largest absolute difference of `step`'s answers from the golden ones:
        all rows together, each alone and, with a state, each in two pieces."""
        everything = np.arange(len(self.lengths))
        gaps = [self._gap(step, rows) for rows in (everything, *everything[:, None])]
        longer = everything[self.lengths > 1]
        if self.state.shape[1] and len(longer):
            gaps.append(self._gap(_in_two(step), longer))
        return max(gaps)

    def _gap(self, step: Step, rows: np.ndarray) -> float:
        lengths = self.lengths[rows]
        frames = self.frames[rows, : lengths.max()]
        probabilities, state = step(frames, lengths, np.zeros_like(self.state[rows]))
        expected = self.probabilities[rows]
        if expected.ndim == 3:
            valid = np.arange(frames.shape[1]) < lengths[:, None]
            expected = expected[:, : frames.shape[1]][valid]
            probabilities = probabilities[valid]
        pairs = [(probabilities, expected)]
        # A state may be large: its error counts in proportion then.
        size = np.maximum(np.abs(self.state[rows]), 1)
        pairs.append((state / size, self.state[rows] / size))
        gaps = [np.abs(ours - theirs).max(initial=0) for ours, theirs in pairs]
        return float(np.nan_to_num(max(gaps), nan=np.inf))

    def save(self, path: Path) -> None:
        """Write a file.

        Raises:
            ValueError: `read` would not take it.
        """
        np.savez_compressed(
            path,
            frames=self.frames,
            lengths=self.lengths,
            probabilities=self.probabilities,
            state=self.state,
        )
        self.read(path.read_bytes())

    @classmethod
    def read(cls, data: bytes, most: int | None = None) -> Self:
        """Returns what a file holds: numbers only, never a pickled object.

        Args:
            data: of the file.
            most: bytes, packed or not; else `MAX_BYTES`.

        Raises:
            ValueError: it is no such file, or its arrays don't fit each other.
        """
        most = most or MAX_BYTES
        # Each member costs memory before one is looked at.
        if len(data) > most or data.count(ENTRY) > MAX_MEMBERS:
            raise ValueError(f"holds more than {most} bytes or {MAX_MEMBERS} members")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                arrays = _arrays(archive, [field.name for field in fields(cls)], most)
        except ValueError:
            raise
        except Exception as error:  # whatever a stranger's file makes of its reader
            raise ValueError(f"can't be read: {error}") from None
        found = cls(**arrays)
        found._check()
        return found

    def _check(self) -> None:
        rows, steps, _ = self.frames.shape if self.frames.ndim == 3 else (0, 0, 0)
        shapes = [self.lengths.shape, self.probabilities.shape[:-1], self.state.shape]
        fit = shapes[0] == (rows,) and shapes[1] in ((rows,), (rows, steps))
        if not (rows and fit and shapes[2][:-1] == (rows,)):
            raise ValueError("its arrays don't fit each other")
        if self.lengths.min() < 1 or self.lengths.max() > steps:
            raise ValueError(f"has lengths that are not from 1 to {steps}")


def _arrays(
    archive: zipfile.ZipFile, names: list[str], most: int
) -> dict[str, np.ndarray]:
    members = archive.infolist()
    expected = sorted(f"{name}.npy" for name in names)
    if sorted(member.filename for member in members) != expected:
        raise ValueError(f"holds other arrays than {expected}")
    if sum(member.file_size for member in members) > most:
        raise ValueError(f"holds more than {most} bytes")
    return {name: _array(archive, archive.getinfo(f"{name}.npy")) for name in names}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array. NumPy's own reader would make room for whatever the header says."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename}: is packed in another way than NumPy's")
    with archive.open(member) as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename}: is of another version than 1.0")
        shape, by_columns, kind = npy.read_array_header_1_0(file)
        if kind.kind not in KINDS[member.filename.removesuffix(".npy")]:
            told = f"{member.filename}: holds {kind}, not numbers (allow_pickle=False)"
            raise ValueError(told)
        data = file.read(member.file_size)  # no more than that is unpacked
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"{member.filename}: is not as long as its shape says")
    return np.frombuffer(data, kind).reshape(shape, order="F" if by_columns else "C")


def _in_two(step: Step) -> Step:
    """The same step, taken as two calls that the state joins."""

    def halves(frames, lengths, state):
        first = lengths // 2
        early, state = step(frames[:, : first.max()], first, state)
        rest = np.zeros_like(frames)
        for row, start, stop in zip(range(len(frames)), first, lengths, strict=True):
            rest[row, : stop - start] = frames[row, start:stop]
        late, state = step(rest, lengths - first, state)
        if early.ndim == 3:
            joined = np.zeros((*frames.shape[:2], late.shape[2]), late.dtype)
            for row, start, stop in zip(
                range(len(frames)), first, lengths, strict=True
            ):
                joined[row, :start] = early[row, :start]
                joined[row, start:stop] = late[row, : stop - start]
            late = joined
        return late, state

    return halves
