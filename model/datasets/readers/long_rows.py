"""Join rows to sequences: the long form of tables, one row for each step.

sequence  step  label  x0   x1   split      only the features are needed to predict
a         0     up     0.1  2    train
a         1     up     0.3  4    train
b         0     down   0.2  1    test

With a step column the rows are sorted by it. Without one, the rows of a sequence must be
adjacent, in order. A table without a column of ids is one sequence. The rows of large
tables are kept in temporary files (see spool).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from model.bundle.records import parse_time
from model.datasets import spool
from model.datasets.dataset import PARTS, UNASSIGNED, join_names
from model.datasets.readers import files
from model.datasets.readers.sequences import Labels, Sequences
from model.datasets.readers.table_layout import Layout

ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)\s*$", re.IGNORECASE)  # after a time
MISSING = {"", "nan", "na", "n/a", "null", "none", "?"}  # in lower case


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


@dataclass(frozen=True, slots=True)
class Runs:
    """A column of a block of rows, as runs: (a, b) of lengths (2, 1) is a, a, b."""

    values: Sequence[str]
    lengths: np.ndarray

    @classmethod
    def of(cls, values: "Sequence[str] | Runs") -> "Runs":
        if isinstance(values, Runs):
            return values
        return cls(values, np.ones(len(values), np.int64))

    @property
    def starts(self) -> list[int]:
        """The first row of each run."""
        return (np.cumsum(self.lengths) - self.lengths).tolist()

    def spread(self, codes: Sequence[int]) -> np.ndarray:
        """Return the code of each row from that of each run, [R] int32."""
        return np.repeat(np.array(codes, np.int32), self.lengths)


class LongRows:
    """Collects rows in blocks, and joins them to sequences at the end."""

    def __init__(self, path: Path, place: str, layout: Layout):
        """
        Args:
            place: "line" or "row", for messages.
        """
        self.path, self.layout = path, layout
        self.labels = Labels()
        self.zoned = False  # the steps are times with a zone
        self.characters = 0  # Of all names so far; counted by the Parquet reader.
        self._place = place
        self._ids: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._count = 0
        self._frames = spool.Rows()
        self._columns: dict[str, spool.Rows] = {}
        self._steps: list[np.ndarray] = []  # of any types, which are joined to one
        self._numbers: range | None = None  # of all rows, if they have no gaps
        self._missing = np.zeros(len(layout.features), np.int64)
        self._first_missing: int | None = None

    def fail(self, number: int, reason: str) -> NoReturn:
        """Refuse the file; the error names the row."""
        line = int(number) if self._place == "line" else f"{self._place} {number}"
        raise files.ReadError(self.path, line, reason)

    def parse_steps(self, cells: Sequence[str]) -> np.ndarray:
        """Return a step column. Raises what the function raises."""
        steps = parse_steps(cells)
        if steps.dtype.kind == "M":
            self.zoned |= ZONE.search(cells[0]) is not None
        return steps

    def add(
        self,
        frames: np.ndarray,
        numbers: Sequence[int] | np.ndarray | range,
        *,
        sequences: Sequence[str] | Runs | None = None,
        names: Sequence[str] | Runs | None = None,
        steps: np.ndarray | None = None,
        split: Sequence[int] | np.ndarray | None = None,
        groups: Sequence[str] | Runs | None = None,
    ) -> None:
        """Add R rows.

        Args:
            frames: [R, F]; NaN where a number is missing.
            numbers: [R], of the rows in the file; a range continues that of the rows
                before.
            sequences, names, steps, split, groups: the special columns that the table has.
        """
        columns: dict[str, np.ndarray] = {}
        if isinstance(numbers, range):
            begin = (self._numbers or numbers).start
            self._numbers = range(begin, numbers.stop)
        else:
            numbers = columns["number"] = np.asarray(numbers)
        with np.errstate(over="ignore"):
            small = frames.astype(np.float32, copy=False)
        if not np.isfinite(small).all():
            self._check_frames(frames, numbers)
        columns["id"] = np.zeros(len(numbers), np.int32)
        if sequences:
            runs = Runs.of(sequences)
            ids = [self._ids.setdefault(name, len(self._ids)) for name in runs.values]
            columns["id"] = runs.spread(ids)
        if names is not None:
            columns["code"] = self._encode(Runs.of(names), numbers)
        if steps is not None:
            (first, *_) = self._steps or [steps]
            if (first.dtype.kind == "M") != (steps.dtype.kind == "M"):
                reason = f"column {self.layout.step!r} mixes numbers and times"
                self.fail(numbers[0], reason)
            for row in np.flatnonzero(np.isnan(steps))[:1]:
                self.fail(numbers[row], f"column {self.layout.step!r} is empty")
            self._steps.append(steps)
        if split is not None:
            columns["split"] = np.array(split, np.int8)
        if groups is not None:
            runs, known = Runs.of(groups), self._groups
            if "" in runs.values:
                row = numbers[runs.starts[list(runs.values).index("")]]
                self.fail(row, f"column {self.layout.group!r} is empty")
            codes = [known.setdefault(name, len(known)) for name in runs.values]
            columns["group"] = runs.spread(codes)
        self._count += len(numbers)
        self._frames.add(small)
        for name, values in columns.items():
            rows = self._columns.setdefault(name, spool.Rows(spool.LIMIT // 8))
            rows.add(values)

    def _check_frames(self, frames: np.ndarray, numbers: np.ndarray | range) -> None:
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

    def _encode(self, names: Runs, numbers: np.ndarray | range) -> np.ndarray:
        codes = []
        for row, name in zip(names.starts, names.values, strict=True):
            if not name:
                self.fail(numbers[row], f"column {self.layout.label!r} is empty")
            codes.append(self.labels.encode(name))
        return names.spread(codes)

    def finish(self) -> Sequences:
        """Join the rows.

        Raises:
            ReadError: there are no rows, numbers are missing, or the rows can't be put in
                order; names a row.
        """
        if not self._count:
            raise files.ReadError(self.path, None, "no rows in the file")
        columns = {name: rows.array() for name, rows in self._columns.items()}
        if self._steps:
            columns["step"] = np.concatenate(self._steps)
        numbers = columns.pop("number") if self._numbers is None else self._numbers
        if self.layout.doubt is not None:
            self.fail(numbers[0], self.layout.doubt)
        frames = self._frames.array()
        self._refuse_missing(len(frames))
        order = self._order(columns, numbers)
        if order is not None:
            frames = spool.collect(frames[places] for places in spool.blocks(order))
            numbers = np.asarray(numbers)[order]
            columns = {name: values[order] for name, values in columns.items()}
        ids, group = columns["id"], columns.get("group")
        starts = np.concatenate([[0], spool.changes(ids)])
        for name, column in (("split", "split"), (self.layout.group, "group")):
            if column in columns:
                inner = np.setdiff1d(spool.changes(columns[column]), starts)
                for row in inner[:1]:
                    reason = f"{name!r} changes within the sequence"
                    self._refuse(ids, row, numbers, reason)
        parts = np.full(len(starts), UNASSIGNED)
        if "split" in columns:
            parts = columns["split"][starts]
        code = columns.get("code")
        if code is not None:
            code = spool.collect(map(self.labels.targets, spool.blocks(code)))
        return Sequences(
            path=self.path,
            ids=tuple(self._ids) or ("1",),
            frames=frames,
            lengths=np.diff(starts, append=len(ids)),
            features=self.layout.names,
            labels=code,
            classes=self.labels.classes,
            split=parts,
            groups=None
            if group is None
            else np.array(list(self._groups), object)[group[starts]],
            steps=columns.get("step"),
            zoned=self.zoned,
            rows=numbers,
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
            " them in, remove the rows, or leave the column out (--ignore; of records,"
            " --numbers)",
        )

    def _order(
        self, columns: dict[str, np.ndarray], numbers: np.ndarray | range
    ) -> np.ndarray | None:
        """Return the order of the rows by sequence and step; None if it is theirs."""
        ids, steps = columns["id"], columns.get("step")
        if steps is None:
            # Ids are numbered as they appear: a lower one belongs to an earlier sequence.
            starts = spool.changes(ids)
            for place in np.flatnonzero(np.diff(ids[starts], prepend=0) < 0)[:1]:
                self._refuse(
                    ids,
                    starts[place],
                    numbers,
                    "the sequence appears again; put its rows one after another, or name"
                    " a column that orders them (--step-column)",
                )
            return None
        if _rises(ids, steps):
            return None
        order = np.lexsort((steps, ids))
        same = (np.diff(ids[order]) == 0) & (steps[order][1:] == steps[order][:-1])
        for place in np.flatnonzero(same)[:1] + 1:
            before = numbers[order[place - 1]]
            reason = f"the same step as in {self._place} {before}"
            self._refuse(ids, order[place], numbers, f"{reason}; steps must differ")
        return order

    def _refuse(
        self, ids: np.ndarray, row: int, numbers: np.ndarray | range, reason: str
    ) -> None:
        """Refuse the file because of a row."""
        name = [*self._ids, ""][ids[row]]
        prefix = f"sequence {name!r:.40}: " if name else ""
        self.fail(numbers[row], f"{prefix}{reason}")


def _rises(ids: np.ndarray, steps: np.ndarray) -> bool:
    """Return true if the rows are in the order of their ids, and then of their steps."""
    for start in range(1, len(ids), spool.BLOCK_BYTES):
        rows = slice(start - 1, start + spool.BLOCK_BYTES)
        before, after = ids[rows][:-1], ids[rows][1:]
        later = steps[rows][1:] > steps[rows][:-1]
        if not ((after > before) | ((after == before) & later)).all():
            return False
    return True
