"""Join rows to sequences: the long form of tables, one row for each step.

sequence  step  label  x0   x1   split      only the features are needed to predict
a         0     up     0.1  2    train
a         1     up     0.3  4    train
b         0     down   0.2  1    test

With a step column the rows are sorted by it. Without one, the rows of a sequence must be
adjacent, in order. A table without a column of ids is one sequence.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from model.datasets.dataset import PARTS, UNASSIGNED, join_names
from model.datasets.readers import files
from model.datasets.readers.sequences import Labels, Sequences
from model.datasets.readers.table_layout import Layout

MISSING = {"", "nan", "na", "n/a", "null", "none", "?"}  # in lower case
MICROSECOND = datetime.timedelta(microseconds=1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def part(name: str | None) -> int:
    """Return the number of a part; an empty cell means that none is assigned."""
    if name is None or name == "":
        return UNASSIGNED
    if name not in PARTS:
        raise ValueError(f"split {name!r:.40} is none of {', '.join(PARTS)}")
    return PARTS.index(name)


def is_number(text: str) -> bool:
    """Return true for a number, or a cell that is missing one."""
    try:
        parse_number(text)
    except ValueError:
        return False
    return True


def parse_number(text: str) -> float:
    """Return a cell as a number; NaN if it is missing. Raises ValueError for other text."""
    try:
        if "_" in text:  # Python reads 1_0 as 10.
            raise ValueError
        return float(text)
    except ValueError:
        if text.strip().lower() in MISSING:
            return float("nan")
        raise


def parse_time(text: str) -> int:
    """Return an ISO 8601 time in microseconds since 1970; without a zone it is UTC."""
    time = datetime.datetime.fromisoformat(text.strip())
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - EPOCH) // MICROSECOND


def parse_steps(cells: Sequence[str]) -> np.ndarray:
    """Return a step column, [R] int64, float64, or datetime64 in microseconds.

    Raises:
        ValueError: the first argument is the index of a cell, the second the reason.
    """
    kind = "times" if not is_number(cells[0]) else "numbers"
    values: list[float] = []
    for index, cell in enumerate(cells):
        try:
            # Whole numbers stay exact: nanoseconds since 1970 do not fit a float.
            if kind == "times":
                values.append(parse_time(cell))
            elif cell.isdecimal() and len(cell) < 20 and int(cell) < 2**63:
                values.append(int(cell))
            else:
                values.append(parse_number(cell))
        except ValueError:
            time = "an ISO 8601 time (2026-01-31 12:00:00)"
            other = time if kind == "times" else "a number"
            other = f"a number or {time}" if not index else other
            raise ValueError(index, f"is {cell!r:.40}, not {other}") from None
    steps = np.array(values)
    return steps.astype("datetime64[us]") if kind == "times" else steps


class LongRows:
    """Collects rows in blocks, and joins them to sequences at the end."""

    def __init__(self, path: Path, place: str, layout: Layout):
        """
        Args:
            place: "line" or "row", for messages.
        """
        self.path, self.layout = path, layout
        self.labels = Labels()
        self.characters = 0  # Of all names so far; counted by the Parquet reader.
        self._place = place
        self._ids: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._frames: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._missing = np.zeros(len(layout.features), np.int64)
        self._first_missing: int | None = None

    def fail(self, number: int, reason: str) -> NoReturn:
        """Refuse the file; the error names the row."""
        line = int(number) if self._place == "line" else f"{self._place} {number}"
        raise files.ReadError(self.path, line, reason)

    def add(
        self,
        frames: np.ndarray,
        numbers: Sequence[int] | np.ndarray,
        *,
        sequences: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        steps: np.ndarray | None = None,
        split: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Add R rows.

        Args:
            frames: [R, F]; NaN where a number is missing.
            numbers: [R], of the rows in the file.
            sequences, names, steps, split, groups: the special columns that the table has.
        """
        numbers = np.asarray(numbers)
        self._check_frames(frames, numbers)
        columns: dict[str, np.ndarray] = {"number": numbers}
        ids = [self._ids.setdefault(name, len(self._ids)) for name in sequences or ()]
        columns["id"] = np.array(ids) if ids else np.zeros(len(numbers), np.int64)
        if names is not None:
            columns["code"] = self._encode(names, numbers)
        if steps is not None:
            columns["step"] = steps
            (first, *_) = self._columns.get("step", [steps])
            if (first.dtype.kind == "M") != (steps.dtype.kind == "M"):
                reason = f"column {self.layout.step!r} mixes numbers and times"
                self.fail(numbers[0], reason)
            for row in np.flatnonzero(np.isnan(steps))[:1]:
                self.fail(numbers[row], f"column {self.layout.step!r} is empty")
        if split is not None:
            columns["split"] = np.array(split)
        if groups is not None:
            if "" in groups:
                row = numbers[list(groups).index("")]
                self.fail(row, f"column {self.layout.group!r} is empty")
            known = self._groups
            codes = [known.setdefault(name, len(known)) for name in groups]
            columns["group"] = np.array(codes)
        with np.errstate(over="ignore"):
            self._frames.append(frames.astype(np.float32))
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def _check_frames(self, frames: np.ndarray, numbers: np.ndarray) -> None:
        """Refuse infinite numbers, and count the missing ones."""
        missing = np.isnan(frames)
        if missing.any():
            self._missing += missing.sum(0)
            if self._first_missing is None:
                self._first_missing = int(numbers[missing.any(1).argmax()])
        with np.errstate(over="ignore"):
            infinite = np.isinf(frames.astype(np.float32))
        for row, column in np.argwhere(infinite)[:1]:
            name = self.layout.features[column]
            self.fail(numbers[row], f"column {name!r} is not a finite float32 number")

    def _encode(self, names: Sequence[str], numbers: np.ndarray) -> np.ndarray:
        codes = []
        for row, name in enumerate(names):
            if not name:
                self.fail(numbers[row], f"column {self.layout.label!r} is empty")
            codes.append(self.labels.encode(name))
        return np.array(codes)

    def finish(self) -> Sequences:
        """Join the rows.

        Raises:
            ReadError: there are no rows, numbers are missing, or the rows can't be put in
                order; names a row.
        """
        if not self._frames:
            raise files.ReadError(self.path, None, "no rows in the file")
        if self.layout.doubt is not None:
            self.fail(self._columns["number"][0][0], self.layout.doubt)
        frames = np.concatenate(self._frames)
        self._refuse_missing(len(frames))
        columns = {k: np.concatenate(blocks) for k, blocks in self._columns.items()}
        order = self._order(columns)
        if order is not None:
            frames = frames[order]
            columns = {name: values[order] for name, values in columns.items()}
        ids = columns["id"]
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        split = columns.get("split", np.full(len(ids), UNASSIGNED))
        inner = np.flatnonzero(np.diff(ids) == 0)  # the next row continues the sequence
        for column in ("split", "group"):
            values = columns.get(column, ids)
            for row in inner[values[inner] != values[inner + 1]][:1] + 1:
                name = self.layout.group if column == "group" else column
                self._refuse(columns, row, f"{name!r} changes within the sequence")
        code, group = columns.get("code"), columns.get("group")
        return Sequences(
            path=self.path,
            ids=tuple(self._ids) or ("1",),
            frames=frames,
            lengths=np.diff(starts, append=len(ids)),
            features=self.layout.names,
            labels=None if code is None else self.labels.targets(code),
            classes=self.labels.classes,
            split=split[starts],
            groups=None
            if group is None
            else np.array(list(self._groups), object)[group[starts]],
            steps=columns.get("step"),
            rows=columns["number"],
            place=self._place,
            columns=self.layout.columns,
            unused=self.layout.unused,
        )

    def _refuse_missing(self, rows: int) -> None:
        if self._first_missing is None:
            return
        counts = zip(self.layout.features, self._missing, strict=True)
        lost = [f"{count:,} in {name!r:.40}" for name, count in counts if count]
        self.fail(
            self._first_missing,
            f"a number is missing, the first of {join_names(lost)} ({rows:,} rows): fill"
            " them in, remove the rows, or leave the column out (--ignore)",
        )

    def _order(self, columns: dict[str, np.ndarray]) -> np.ndarray | None:
        """Return the order of the rows by sequence and step; None if it is theirs."""
        ids, steps = columns["id"], columns.get("step")
        if steps is None:
            # Ids are numbered as they appear: a lower one belongs to an earlier sequence.
            for row in np.flatnonzero(np.diff(ids) < 0)[:1] + 1:
                self._refuse(
                    columns,
                    row,
                    "the sequence appears again; put its rows one after another, or name"
                    " a column that orders them (--step-column)",
                )
            return None
        order = np.lexsort((steps, ids))
        same = (np.diff(ids[order]) == 0) & (steps[order][1:] == steps[order][:-1])
        for place in np.flatnonzero(same)[:1] + 1:
            before = columns["number"][order[place - 1]]
            reason = f"the same step as in {self._place} {before}"
            self._refuse(columns, order[place], f"{reason}; steps must differ")
        return None if (np.diff(order) == 1).all() else order

    def _refuse(self, columns: dict[str, np.ndarray], row: int, reason: str) -> None:
        """Refuse the file because of a row."""
        name = [*self._ids, ""][columns["id"][row]]
        prefix = f"sequence {name!r:.40}: " if name else ""
        self.fail(columns["number"][row], f"{prefix}{reason}")
