"""Read JSON Lines: one sequence on each line, or one step as in a table (long_rows).

{"frames": [[0.1, 2], [0.3, 4]], "label": "a"}                    classify
{"frames": [[0.1, 2], [0.3, 4]], "labels": ["a", "b"]}            label
{"frames": [0.1, 0.3], "label": "a", "split": "test"}             one feature
{"frames": [[0.1, 2], [0.3, 4]], "label": "a", "group": "ann"}    of a group
{"frames": [{"x": 0.1, "y": 2}, {"x": 0.3, "y": 4}], "id": "p7"}  features with names
{"sequence": "p7", "step": 0, "x": 0.1, "y": 2, "label": "a"}     one step on each line
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.dataset import PARTS, UNASSIGNED, Task, default_features
from model.datasets.readers import files, long_rows, table_layout
from model.datasets.readers.sequences import Labels, Sequences, to_text
from model.datasets.readers.table_layout import Columns, Expected

KEYS: dict[Task, str] = {"classify": "label", "label": "labels"}
ALLOWED = {"id", "frames", "split", *KEYS.values()}
BLOCK = 8192  # steps in memory as Python objects at a time
TOO_LARGE = "'frames' holds a number too large for float32"

Record = dict[str, Any]
Line = tuple[int, Record]  # number, object


def read(path: Path, expected: Expected) -> Sequences:
    lines = numbered_records(path)
    first = next(lines, None)
    if first is None:
        raise files.ReadError(path, None, "no sequences in the file")
    lines = chain([first], lines)
    if "frames" not in first[1] and "labels" not in first[1]:
        return _read_steps(path, lines, expected)
    table = SequenceLines(expected)
    for line, record in lines:
        try:
            table.add(record)
        except ValueError as error:
            raise files.ReadError(path, line, str(error)) from None
    return table.finish(path)


def numbered_records(path: Path) -> Iterator[Line]:
    """Yield the object of each line that is not empty, with the line's number."""
    for line, text in files.numbered_lines(path):
        if text.strip():
            try:
                yield line, _parse(text)
            except ValueError as error:
                raise files.ReadError(path, line, str(error)) from None


def named_rows(path: Path) -> files.Rows:
    """Return the object of each line.

    Raises:
        ReadError: the first line can't be read, or there is none.
    """
    lines = numbered_records(path)
    first = next(lines, None)
    if first is None:
        raise files.ReadError(path, None, "no lines in the file")
    return files.Rows(list(first[1]), first[0], chain([first], lines))


def _parse(text: str) -> Record:
    try:
        record = json.loads(
            text, parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(reason) from None
    except RecursionError:
        raise ValueError("not JSON of this shape: nested too deeply") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's words
            raise ValueError("a number has too many digits") from None
        raise
    if type(record) is not dict:
        raise ValueError("expected an object on each line, such as {...}")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is repeated")
    return record


class SequenceLines:
    """Collects lines that are a sequence each."""

    def __init__(self, expected: Expected):
        self._expected = expected
        self._named: table_layout.Layout | None = None  # if steps are objects
        self._labels = Labels()
        self._frames: list[np.ndarray] = []
        self._codes: list[int] = []
        self._ids: list[str] = []
        self._split: list[int] = []
        group, recorded = expected.columns.group, expected.recorded.group
        self._group = group or recorded or "group"  # the key
        self._allowed = ALLOWED | {self._group}
        self._groups: list[str] = []
        self._task: Task | None = None

    def add(self, record: Record) -> None:
        for key in record:
            if key not in self._allowed:
                near = table_layout.nearest(key, sorted(self._allowed))
                hint = f"; did you mean {near!r}?" if near else ""
                raise ValueError(f"unknown key {key!r:.40}{hint}")
        if "frames" not in record:
            raise ValueError("'frames' is missing")
        if not self._frames:
            self._refuse_columns()
            self._task = self._find_task(record)
        frames = self._to_array(record["frames"])
        self._codes += self._encode(record, len(frames))
        self._frames.append(frames)
        self._ids.append(to_text(record.get("id", len(self._ids) + 1)))
        self._split.append(_part(record))
        self._add_group(record)

    def _refuse_columns(self) -> None:
        """Refuse columns that were chosen where a line is a sequence."""
        columns = self._expected.columns
        if columns.sequence != "id":
            reason = "a line is a sequence, and its id is the key 'id'"
            table_layout.refuse(columns, ["sequence"], reason)
        if columns.label not in KEYS.values():
            reason = "a line is a sequence, with the key 'label' or 'labels'"
            table_layout.refuse(columns, ["label"], reason)
        table_layout.refuse(columns, ["step"], "a line is a sequence, in order")

    def _add_group(self, record: Record) -> None:
        """Add the line's group, if the lines have groups."""
        if not self._expected.training:
            return
        key = self._group
        if key in record:
            if len(self._groups) < len(self._ids) - 1:
                raise ValueError(f"has {key!r:.40}, which the first line has not")
            if not (name := to_text(record[key])):
                raise ValueError(f"{key!r:.40} is empty")
            self._groups.append(name)
        elif self._groups or self._expected.columns.group:
            raise ValueError(table_layout.missing(key, list(record), "key"))

    def finish(self, path: Path) -> Sequences:
        width = self._frames[0].shape[1]
        names = self._expected.features or default_features(width)
        if self._named is not None:
            names = self._named.names
        return Sequences(
            path=path,
            ids=tuple(self._ids),
            frames=np.concatenate(self._frames),
            lengths=np.array([len(frames) for frames in self._frames]),
            features=tuple(names),
            labels=self._labels.targets(self._codes) if self._task else None,
            classes=self._labels.classes,
            task=self._task,
            split=np.array(self._split),
            groups=np.array(self._groups, object) if self._groups else None,
            columns=replace(self._expected.columns, sequence="id"),
            unused=() if self._named is None else self._named.unused,
        )

    def _find_task(self, record: Record) -> Task | None:
        for task, key in KEYS.items():
            if key in record:
                return task
        if self._expected.training:
            raise ValueError("'label' or 'labels' is missing")
        return None

    def _to_array(self, rows: Any) -> np.ndarray:
        """Return frames, [T, F] float32."""
        if not isinstance(rows, list) or not rows:
            raise ValueError("'frames' is not a list of at least one step")
        if isinstance(rows[0], dict):
            rows = self._by_name(rows)
        elif self._named is not None:
            raise ValueError("'frames' has no names; those of the first line have")
        else:
            reason = "the steps of 'frames' have no names"
            table_layout.refuse(self._expected.columns, ["ignore"], reason)
        if not isinstance(rows[0], list):
            if any(isinstance(row, list) for row in rows):
                raise ValueError("'frames' mixes numbers and lists of numbers")
            rows = [[value] for value in rows]
        for step, row in enumerate(rows):
            if not isinstance(row, list) or not row:
                raise ValueError(f"step {step} of 'frames' is not a list of numbers")
            if len(row) != len(rows[0]):
                reason = f"step {step} has {len(row)} features, step 0 has"
                raise ValueError(f"{reason} {len(rows[0])}")
        self._check_width(len(rows[0]))
        # NumPy would read true as 1 and "1" as 1.0.
        if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
            raise ValueError(f"{_first_other(rows)!r:.40} in 'frames' is not a number")
        return _array(rows)

    def _check_width(self, width: int) -> None:
        if self._frames and width != self._frames[0].shape[1]:
            expected = self._frames[0].shape[1]
            raise ValueError(f"{width} features; the file began with {expected}")
        if self._expected.features is not None and width != len(
            self._expected.features
        ):
            takes = f"the network takes {len(self._expected.features)}"
            raise ValueError(f"{width} features; {takes}")

    def _by_name(self, rows: list[Any]) -> list[list[Any]]:
        """Return the values of steps that are objects, in the order of the features."""
        if self._named is None:
            if self._frames:
                raise ValueError(
                    "'frames' has names; those of the first line have none"
                )
            members = Columns(ignore=self._expected.columns.ignore)
            self._named = table_layout.assign(
                list(rows[0]), Expected(members, self._expected.features)
            )
        names = self._named.features
        for step, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"step {step} of 'frames' has no names")
            for name in names:
                if name not in row:
                    reason = table_layout.missing(name, list(row), "feature")
                    raise ValueError(f"step {step}: {reason}")
        return [[row[name] for name in names] for row in rows]

    def _encode(self, record: Record, steps: int) -> list[int]:
        """Return the codes of a line's label, or labels."""
        if self._task is None:
            if any(key in record for key in KEYS.values()):
                raise ValueError("has labels, which the first line has not")
            return []
        key = KEYS[self._task]
        other = next(name for name in KEYS.values() if name != key)
        if other in record:
            raise ValueError(f"{other!r} does not belong to task {self._task}")
        if key not in record:
            raise ValueError(f"{key!r} is missing")
        values = record[key]
        if self._task == "classify":
            values = [values]
        elif not isinstance(values, list) or len(values) != steps:
            raise ValueError(f"'labels' is not a list of {steps}, one for each step")
        return [self._labels.encode(to_text(value)) for value in values]


def _array(rows: list[list[float]]) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            frames = np.array(rows, np.float64).astype(np.float32)
    except OverflowError:
        raise ValueError(TOO_LARGE) from None
    if not np.isfinite(frames).all():
        raise ValueError(TOO_LARGE)
    return frames


def _first_other(rows: list[list[Any]]) -> object:
    values = chain.from_iterable(rows)
    return next(value for value in values if type(value) not in (int, float))


def _part(record: Record) -> int:
    if "split" not in record:
        return UNASSIGNED
    if record["split"] not in PARTS:
        raise ValueError(f"'split' is none of {', '.join(PARTS)}")
    return PARTS.index(record["split"])


def _read_steps(path: Path, lines: Iterator[Line], expected: Expected) -> Sequences:
    """Read lines that are a step each."""
    table: long_rows.LongRows | None = None
    while block := list(islice(lines, BLOCK)):
        number, record = block[0]
        try:
            if table is None:
                layout = table_layout.assign(list(record), expected)
                table = long_rows.LongRows(path, "line", layout)
            for number, record in block:  # noqa: B007
                _check_step(record, table.layout)
        except ValueError as error:
            raise files.ReadError(path, number, str(error)) from None
        _add_steps(table, block)
    assert table is not None
    return table.finish()


def _check_step(record: Record, layout: table_layout.Layout) -> None:
    """Refuse a step that lacks a column, or has another type there."""
    long_rows.part(record.get(layout.split or ""))
    special = (layout.sequence, layout.label, layout.step, layout.group)
    for column in (*layout.features, *(name for name in special if name)):
        if column not in record:
            raise ValueError(table_layout.missing(column, list(record), "key"))
        number = type(record[column]) in (int, float)
        if column in layout.features and not number and record[column] is not None:
            value = record[column]
            raise ValueError(f"{column!r:.40} is {value!r:.40}, not a number")


def _add_steps(table: long_rows.LongRows, block: list[Line]) -> None:
    layout = table.layout
    numbers = [number for number, _ in block]

    def texts(column: str | None) -> list[str] | None:
        if column is None:
            return None
        names = []
        for number, record in block:
            try:
                names.append(to_text(record[column]))
            except ValueError as error:
                table.fail(number, f"{column!r:.40}: {error}")
        return names

    values = [[_float(record[name]) for name in layout.features] for _, record in block]
    split = [long_rows.part(record.get(layout.split or "")) for _, record in block]
    table.add(
        np.array(values, np.float64),
        numbers,
        sequences=texts(layout.sequence),
        names=texts(layout.label),
        steps=_steps(table, block),
        split=None if layout.split is None else split,
        groups=texts(layout.group),
    )


def _float(value: float | None) -> float:
    try:
        return float("nan") if value is None else float(value)
    except OverflowError:
        return float("inf")


def _steps(table: long_rows.LongRows, block: list[Line]) -> np.ndarray | None:
    column = table.layout.step
    if column is None:
        return None
    cells = [str(record[column]) for _, record in block]
    try:
        return table.parse_steps(cells)
    except ValueError as error:
        index, reason = error.args
        table.fail(block[index][0], f"{column!r:.40} {reason}")
