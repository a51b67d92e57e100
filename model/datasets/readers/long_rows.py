"""Sequences in long form, one row a step, as CSV and Parquet hold them.

sequence  step  label  x0   x1   split      step and split may be left out
a         0     up     0.1  2    train
a         1     up     0.3  4    train
b         0     down   0.2  1    test
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from model.datasets import dataset as sets
from model.datasets.readers import errors, labels

REQUIRED = ("sequence", "label")
RESERVED = (*REQUIRED, "step", "split")


def feature_columns(columns: Sequence[str]) -> list[str]:
    """The columns that hold features; ValueError where the header is not right."""
    for index, column in enumerate(columns):
        if not column:
            raise ValueError(f"column {index + 1} has no name")
    doubled = {column for column, count in Counter(columns).items() if count > 1}
    if doubled:
        raise ValueError(f"column {min(doubled)!r} stands twice")
    for column in REQUIRED:
        if column not in columns:
            known = ", ".join(columns)
            raise ValueError(f"column {column!r} is missing; found {known:.80}")
    features = [column for column in columns if column not in RESERVED]
    if not features:
        raise ValueError(f"no columns of features beside {', '.join(columns)}")
    return features


def part(name: str | None) -> int:
    """The number of a part; a row that leaves it empty has none."""
    if name is None or name == "":
        return sets.UNASSIGNED
    if name not in sets.PARTS:
        raise ValueError(f"split {name!r:.40} is none of {', '.join(sets.PARTS)}")
    return sets.PARTS.index(name)


class LongRows:
    """Takes rows in blocks and joins them to sequences at the end."""

    def __init__(
        self,
        path: Path,
        place: str,
        features: Sequence[str],
        classes: Sequence[str] | None,
    ):
        self.path = path
        self.labels = labels.Labels(classes)
        self.characters = 0  # Of names so far, for a reader that counts them.
        self._place = place  # "line" or "row"
        self._features = tuple(features)
        self._ids: dict[str, int] = {}
        self._frames: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}

    def fail(self, number: int, reason: str) -> NoReturn:
        """Refuse the file, pointing at a row."""
        line = int(number) if self._place == "line" else f"{self._place} {number}"
        raise errors.ReadError(self.path, line, reason)

    def add(
        self,
        frames: np.ndarray,
        sequences: list[str],
        names: list[str],
        **columns: Sequence[float] | np.ndarray,
    ) -> None:
        """Take R rows: frames [R, F]; columns are number, and step and split if any."""
        numbers = np.asarray(columns["number"])
        with np.errstate(over="ignore"):
            frames = frames.astype(np.float32)
        for row, column in np.argwhere(~np.isfinite(frames))[:1]:
            reason = f"column {self._features[column]!r} is not a finite float32 number"
            self.fail(numbers[row], reason)
        for row in np.flatnonzero(~np.isfinite(columns.get("step", ())))[:1]:
            self.fail(numbers[row], "column 'step' is not a finite number")
        codes = []
        for row, name in enumerate(names):
            try:
                codes.append(self.labels.encode(name))
            except ValueError as error:
                self.fail(numbers[row], str(error))
        ids = [self._ids.setdefault(name, len(self._ids)) for name in sequences]
        self._frames.append(frames)
        for name, values in (*columns.items(), ("id", ids), ("code", codes)):
            self._columns.setdefault(name, []).append(np.asarray(values))

    def finish(self, task: sets.Task | None) -> sets.Dataset:
        """Join the rows; `task=None` is classify if no label changes in a sequence."""
        if not self._frames:
            raise errors.ReadError(self.path, None, "no rows in the file")
        columns = {
            name: np.concatenate(blocks) for name, blocks in self._columns.items()
        }
        # Ids are counted as they come: one that falls has been there before.
        ids, codes = columns["id"], columns["code"]
        self._refuse(
            columns,
            np.diff(ids) < 0,
            "the sequence comes back; its rows must stand together",
        )
        inner = np.diff(ids) == 0  # [rows - 1] The next row continues the sequence.
        if "step" in columns:
            steps = columns["step"]  # A difference would wrap if unsigned.
            falls = steps[1:] <= steps[:-1]
            self._refuse(columns, inner & falls, "'step' does not increase")
        split = columns.get("split", np.full(len(ids), sets.UNASSIGNED))
        changes = inner & (np.diff(split) != 0)
        self._refuse(columns, changes, "'split' changes within the sequence")
        changes = inner & (np.diff(codes) != 0)
        if task is None:
            task = "label" if changes.any() else "classify"
        if task == "classify":
            reason = "the label changes within the sequence; task classify needs one"
            self._refuse(columns, changes, reason)
        starts = np.flatnonzero(np.concatenate([[True], ~inner]))
        return sets.Dataset(
            name=self.path.stem,
            task=task,
            frames=np.concatenate(self._frames),
            lengths=np.diff(starts, append=len(ids)),
            targets=self.labels.targets(codes[starts] if task == "classify" else codes),
            classes=self.labels.classes,
            features=self._features,
            split=split[starts],
        )

    def _refuse(
        self, columns: dict[str, np.ndarray], wrong: np.ndarray, reason: str
    ) -> None:
        """Refuse the first row that is wrong, given for all rows but row 0."""
        for row in np.flatnonzero(wrong)[:1] + 1:
            name = list(self._ids)[columns["id"][row]]
            self.fail(columns["number"][row], f"sequence {name!r:.40}: {reason}")
