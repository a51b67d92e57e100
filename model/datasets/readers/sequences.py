"""The sequences of a file or a DataFrame: ids, frames, and labels if it has them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.datasets import spool
from model.datasets.dataset import UNASSIGNED, Dataset, Task, join_names
from model.datasets.readers import files
from model.datasets.readers.table_layout import Columns

MIXED = 0.9  # a share of sequences with one label from which other ones are doubtful
MAX_ROWS = 3  # named in a message
INTEGER = re.compile(r"-?[0-9]{1,18}")


class Empty(NamedTuple):
    """A row without a text: its id and line, and the number of sequences before it."""

    place: int
    id: str
    line: int


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Sequences joined along time, as `Dataset`, but with ids, and labels only if known.

    Attributes:
        path: the file, for messages.
        ids: one for each sequence; numbers from 1 if the file has none.
        frames: [sum of lengths, F] float32.
        lengths: [N] int32.
        features: F names; x0, x1, ... if the file has none.
        labels: indices in `classes`, [N] or [sum of lengths]; None: no labels.
        classes: the names of the labels.
        task: "classify" if there is a label for each sequence, "label" if there is one
            for each step, and None for a table, whose rows all have one.
        split: [N], as in `Dataset`.
        groups: [N], as in `Dataset`; None: unknown.
        steps: the step column's numbers or times, [sum of lengths]; None: no such column.
        zoned: true if `steps` are times that have a zone in the data; they are in UTC.
        rows: the line or row of each step, [sum of lengths]; None: unknown.
        place: "line" or "row".
        columns: the names of the special columns.
        unused: columns that are neither features nor special.
        integer_ids: true if the ids are whole numbers in the data.
        values: of text and records, each sequence as a service takes it; None for frames.
        empty: rows without a text, which are no sequences.
        labelled: texts that have a label where others have none, so `labels` is None.
    """

    path: Path
    ids: tuple[str, ...]
    frames: np.ndarray
    lengths: np.ndarray
    features: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    task: Task | None = None
    split: np.ndarray | None = None
    groups: np.ndarray | None = None
    steps: np.ndarray | None = None
    zoned: bool = False
    rows: np.ndarray | range | None = None
    place: str = "line"
    columns: Columns = field(default_factory=Columns)
    unused: tuple[str, ...] = ()
    integer_ids: bool = False
    values: list[Any] | None = None
    empty: tuple[Empty, ...] = ()
    labelled: int = 0
    offsets: np.ndarray = field(init=False, repr=False)  # [N + 1]

    def __post_init__(self) -> None:
        lengths = np.asarray(self.lengths, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "offsets", np.concatenate([[0], ends]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.sequence(index) for index in range(len(self)))

    @property
    def inputs(self) -> list[Any]:
        """The sequences as a service takes them: frames, texts or tokens, or records."""
        return list(self) if self.values is None else self.values

    def sequence(self, index: int) -> np.ndarray:
        """Return the frames of one sequence, [T, F]."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]

    def empty_rows(self) -> str:
        """Say how many rows have no text, and where they are."""
        count, total = len(self.empty), len(self) + len(self.empty)
        lines = ", ".join(f"{row.line}" for row in self.empty[:MAX_ROWS])
        more = f" and {count - MAX_ROWS:,} more" if count > MAX_ROWS else ""
        place = f"{self.place}{'s' * (count > 1)} {lines}{more}"
        return f"{count:,} of {total:,} texts are empty ({place})"

    def steps_of(self, index: int) -> np.ndarray:
        """Return the step column of one sequence, [T]; or 1, 2, 3, ..."""
        if self.steps is None:
            return np.arange(1, self.lengths[index] + 1)
        return self.steps[self.offsets[index] : self.offsets[index + 1]]

    def labels_of(self, index: int, task: Task) -> list[str] | None:
        """Return the label of one sequence, or those of its steps; None if unknown.

        A sequence whose steps have several labels has no label for task classify.
        """
        if self.labels is None or self.task not in (None, task):
            return None
        if self.task == "classify":
            codes = self.labels[index : index + 1]
        else:
            codes = self.labels[self.offsets[index] : self.offsets[index + 1]]
        if task == "classify":
            codes = np.unique(codes)
            if len(codes) != 1:
                return None
        return [self.classes[code] for code in codes.tolist()]

    def dataset(self, task: Task | None = None) -> Dataset:
        """Return a data set for training or evaluation.

        Without `task` a table is to classify if no label changes in a sequence.

        Raises:
            ReadError: there are no labels, they are of another task, or the task can't
                be inferred; names the rows.
        """
        if self.labels is None:
            column = self.columns.label or "label"
            raise files.ReadError(self.path, None, f"no labels (column {column!r})")
        if self.task not in (None, task or self.task):
            unit, other = (
                ("sequence", "step") if task == "label" else ("step", "sequence")
            )
            reason = (
                f"one label for each {unit}; task {task} needs one for each {other}"
            )
            raise files.ReadError(self.path, None, reason)
        task = task or self.task or self._infer_task()
        targets = self.labels
        if self.task is None and task == "classify":
            self._check_constant()
            targets = self.labels[self.offsets[:-1]]
        return Dataset(
            name=self.path.stem,
            task=task,
            frames=self.frames,
            lengths=self.lengths,
            targets=targets,
            classes=self.classes,
            features=self.features,
            split=self.split
            if self.split is not None
            else np.full(len(self), UNASSIGNED),
            ids=np.array(self.ids, object),
            groups=self.groups,
        )

    def _changes(self) -> np.ndarray:
        """Return the steps whose label differs from the step before, in one sequence."""
        assert self.labels is not None
        changes = spool.changes(self.labels)
        starts = self.offsets[np.searchsorted(self.offsets, changes)]
        return changes[starts != changes]

    def _infer_task(self) -> Task:
        changes = self._changes()
        mixed = np.unique(np.searchsorted(self.offsets, changes, "right") - 1)
        if not len(mixed):
            return "classify"
        constant = len(self) - len(mixed)
        if constant < MIXED * len(self):
            return "label"
        raise files.ReadError(
            self.path,
            None,
            f"{constant} of {len(self)} sequences have one label, but"
            f" {self._odd_rows(mixed)}: mend that to classify, or use --task label to"
            " predict one class for each step",
        )

    def _odd_rows(self, mixed: np.ndarray) -> str:
        """Name the rows with the rarer labels of sequences with several labels."""
        assert self.labels is not None
        places = []
        for index in mixed[:MAX_ROWS].tolist():
            start, stop = self.offsets[index : index + 2]
            codes = self.labels[start:stop]
            odd = start + np.flatnonzero(codes != np.bincount(codes).argmax())
            where = f"step {odd[0] - start + 1}"
            if self.rows is not None:
                where = f"{self.place} {self.rows[odd[0]]}"
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            label = self.classes[self.labels[odd[0]]]
            usual = self.classes[np.bincount(codes).argmax()]
            places.append(
                f"{where}{more} of sequence {self.ids[index]!r:.40} has {label!r:.40} where"
                f" the others have {usual!r:.40}"
            )
        if len(mixed) > MAX_ROWS:
            places.append(f"and so on in {len(mixed) - MAX_ROWS} others")
        return "; ".join(places)

    def _check_constant(self) -> None:
        for step in self._changes()[:1].tolist():
            index = int(np.searchsorted(self.offsets, step, "right")) - 1
            place = None if self.rows is None else int(self.rows[step])
            reason = "the label changes within the sequence; task classify needs one"
            raise files.ReadError(
                self.path,
                place if self.place == "line" or place is None else f"row {place}",
                f"sequence {self.ids[index]!r:.40}: {reason}",
            )


class Labels:
    """Number the classes as they occur, and sort them at the end.

    With `classes` the order is fixed, and any other name is refused.
    """

    def __init__(self, classes: Sequence[str] | None = None):
        self._fixed = classes is not None
        self._codes = {name: code for code, name in enumerate(classes or ())}

    def encode(self, name: str) -> int:
        """Return the number of a class; raise ValueError if there can't be such a class."""
        if not name:
            raise ValueError("the label is empty")
        code = self._codes.get(name)
        if code is not None:
            return code
        if self._fixed:
            known = join_names(self._codes)
            raise ValueError(f"label {name!r:.80} is not among the classes {known}")
        return self._codes.setdefault(name, len(self._codes))

    @property
    def classes(self) -> tuple[str, ...]:
        """All names: in the given order, or whole numbers by value and text by alphabet."""
        if self._fixed:
            return tuple(self._codes)
        if all(INTEGER.fullmatch(name) for name in self._codes):
            return tuple(sorted(self._codes, key=lambda name: (int(name), name)))
        return tuple(sorted(self._codes))

    def targets(self, codes: Iterable[int] | np.ndarray) -> np.ndarray:
        """Turn numbers from encode() into indices in `classes`, int32."""
        place = {name: index for index, name in enumerate(self.classes)}
        table = np.array([place[name] for name in self._codes], np.int32)
        codes = np.asarray(codes)
        return table[codes if len(codes) else codes.astype(np.int64)]


def to_text(value: object) -> str:
    """Return a label or an id as text: true as "true" (like JSON), 7 as "7"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise ValueError(f"expected text, a whole number or a boolean, not {value!r:.40}")
