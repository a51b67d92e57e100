"""Join rows to sequences: the long form of CSV and Parquet, one row for each step.

sequence  step  label  x0   x1   split      step and split are optional
a         0     up     0.1  2    train
a         1     up     0.3  4    train
b         0     down   0.2  1    test
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from model.datasets.dataset import PARTS, UNASSIGNED, Dataset, Task
from model.datasets.readers import files, labels

REQUIRED = ("sequence", "label")
RESERVED = (*REQUIRED, "step", "split")


def feature_columns(columns: Sequence[str]) -> list[str]:
    """Return the feature columns; raise ValueError for a wrong header."""
    for index, column in enumerate(columns):
        if not column:
            raise ValueError(f"column {index + 1} has no name")
    repeated = {column for column, count in Counter(columns).items() if count > 1}
    if repeated:
        raise ValueError(f"column {min(repeated)!r} is repeated")
    for column in REQUIRED:
        if column not in columns:
            known = ", ".join(columns)
            raise ValueError(f"column {column!r} is missing; found {known:.80}")
    features = [column for column in columns if column not in RESERVED]
    if not features:
        raise ValueError(f"no feature columns beside {', '.join(columns)}")
    return features


def part(name: str | None) -> int:
    """Return the number of a part; an empty cell means that none is assigned."""
    if name is None or name == "":
        return UNASSIGNED
    if name not in PARTS:
        raise ValueError(f"split {name!r:.40} is none of {', '.join(PARTS)}")
    return PARTS.index(name)


class LongRows:
    """Collects rows in blocks, and joins them to sequences at the end."""

    def __init__(
        self,
        path: Path,
        place: str,
        features: Sequence[str],
        classes: Sequence[str] | None,
    ):
        self.path = path
        self.labels = labels.Labels(classes)
        self.characters = 0  # Of all names so far; counted by the Parquet reader.
        self._place = place  # "line" or "row"
        self._features = tuple(features)
        self._ids: dict[str, int] = {}
        self._frames: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}

    def fail(self, number: int, reason: str) -> NoReturn:
        """Refuse the file; the error names the row."""
        line = int(number) if self._place == "line" else f"{self._place} {number}"
        raise files.ReadError(self.path, line, reason)

    def add(
        self,
        frames: np.ndarray,
        sequences: list[str],
        names: list[str],
        **columns: Sequence[float] | np.ndarray,
    ) -> None:
        """Add R rows: frames [R, F]; `columns` are number, and step and split if present."""
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

    def finish(self, task: Task | None) -> Dataset:
        """Join the rows. Without `task` it is classify if no label changes in a sequence."""
        if not self._frames:
            raise files.ReadError(self.path, None, "no rows in the file")
        columns = {
            name: np.concatenate(blocks) for name, blocks in self._columns.items()
        }
        # Ids are numbered in order of appearance: a lower one belongs to an earlier sequence.
        ids, codes = columns["id"], columns["code"]
        self._refuse(
            columns,
            np.diff(ids) < 0,
            "the sequence appears again; its rows must be adjacent",
        )
        inner = np.diff(ids) == 0  # [rows - 1] The next row continues the sequence.
        if "step" in columns:
            steps = columns["step"]  # An unsigned difference would wrap.
            falls = steps[1:] <= steps[:-1]
            self._refuse(columns, inner & falls, "'step' does not increase")
        split = columns.get("split", np.full(len(ids), UNASSIGNED))
        changes = inner & (np.diff(split) != 0)
        self._refuse(columns, changes, "'split' changes within the sequence")
        changes = inner & (np.diff(codes) != 0)
        if task is None:
            task = "label" if changes.any() else "classify"
        if task == "classify":
            reason = "the label changes within the sequence; task classify needs one"
            self._refuse(columns, changes, reason)
        starts = np.flatnonzero(np.concatenate([[True], ~inner]))
        return Dataset(
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
        """Refuse the file at the first wrong row; `wrong` has an entry for each but row 0."""
        for row in np.flatnonzero(wrong)[:1] + 1:
            name = list(self._ids)[columns["id"][row]]
            self.fail(columns["number"][row], f"sequence {name!r:.40}: {reason}")
