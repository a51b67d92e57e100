"""Answers that every engine must reproduce before it may serve."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np

# frames [B, T, F], lengths [B], state [B, S] -> probabilities, state [B, S]
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

MOST_BYTES = 2**28  # unpacked: a few sequences are far less


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
        np.savez_compressed(
            path,
            frames=self.frames,
            lengths=self.lengths,
            probabilities=self.probabilities,
            state=self.state,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads numbers only, never a pickled object, and no more than `MOST_BYTES`.

        Raises:
            ValueError: it is no such file.
        """
        names = {f"{field.name}.npy" for field in fields(cls)}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if {member.filename for member in members} != names:
            raise ValueError(f"{path}: holds other arrays than {sorted(names)}")
        if sum(member.file_size for member in members) > MOST_BYTES:
            raise ValueError(f"{path}: holds more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})


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
