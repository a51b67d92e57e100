"""Read records from files and DataFrames: categories, numbers and times of events.

a table                       a row for each record (see long_rows)
.jsonl                        {"records": [{...}, {...}], "label": "a"}      classify
                              {"records": [{...}], "labels": ["a"]}          label
                              or a line for each record, as a table's row

The rows of a table are in the order of the step column, or else of the times.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import records
from model.bundle.records import RecordError
from model.datasets.dataset import Dataset, Task
from model.datasets.readers import csv_rows, dataframe, json_lines, long_rows
from model.datasets.readers.files import ReadError
from model.datasets.readers.long_rows import LongRows
from model.datasets.readers.sequences import Sequences, to_text
from model.datasets.readers.table_layout import (
    Columns,
    Expected,
    Layout,
    RecordOptions,
    assign,
    check_choices,
    check_names,
)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
BOOLEANS = {"true", "false", ""}  # in lower case


@dataclass(frozen=True, slots=True, eq=False)
class RecordTable:
    """The records of a file.

    Attributes:
        sequences: whose frames hold numbers, places in `strings` for categories, and the
            logarithms of the seconds since the record before.
        strings: all categories.
        times: [sum of lengths], in microseconds since 1970; None without times.
        options: the columns.
    """

    sequences: Sequences
    strings: tuple[str, ...]
    times: np.ndarray | None
    options: RecordOptions

    def dataset(self, task: Task | None = None) -> Dataset:
        """Return a data set whose categories are numbers in `Dataset.strings`."""
        return replace(self.sequences.dataset(task), strings=self.strings)

    def with_records(self) -> Sequences:
        """Return the sequences with their records, to predict."""
        records = [self.records(index) for index in range(len(self.sequences))]
        return replace(self.sequences, values=records)

    def records(self, index: int) -> list[dict[str, Any]]:
        """Return the records of a sequence, as a service takes them."""
        start, end = self.sequences.offsets[index : index + 2].tolist()
        frames = self.sequences.frames[start:end].tolist()
        kinds = [*self.options.kinds.items()]
        results = []
        for step, row in enumerate(frames, start):
            record: dict[str, Any] = {}
            for (name, kind), value in zip(kinds, row, strict=True):
                if kind == "category":
                    record[name] = self.strings[int(value)]
                elif kind == "number":
                    record[name] = value
                elif self.times is not None:
                    record[name] = int(self.times[step]) / records.SECOND
            results.append(record)
        return results


def read(
    source: object,
    options: RecordOptions,
    columns: Columns = Columns(),
    *,
    task: Task | None = None,
    training: bool = False,
    recorded: Columns = Columns(),
    strings: Sequence[str] = (),
) -> RecordTable:
    """Read a file or a DataFrame of records.

    Args:
        columns, task, training, recorded: see `readers.read_sequences`.
        strings: categories of another table, that keep their places.

    Raises:
        ReadError: it can't be read, or a column is missing; names the line or row.
    """
    try:
        names = tuple(options.kinds)
    except ValueError as error:
        raise ReadError(Path(str(source)[:80]), None, str(error)) from None
    expected = Expected(columns, names, task, training, recorded)
    reader = _Reader(options, expected, strings)
    if not isinstance(source, (str, os.PathLike)):
        with dataframe.naming_arguments():
            return reader.read_dataframe(dataframe.NAME, source)
    path = Path(os.fspath(source))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        reason = f"no records in {suffix!r} files; known are {', '.join(SUFFIXES)}"
        raise ReadError(path, None, reason)
    if suffix == ".parquet":
        return reader.read_parquet(path)
    if suffix in (".csv", ".tsv"):
        return reader.read_csv(path)
    return reader.read_lines(path)


class _Reader:
    """Reads one file or DataFrame, and numbers its categories."""

    def __init__(
        self, options: RecordOptions, expected: Expected, strings: Sequence[str]
    ):
        self._options, self._expected = options, expected
        self._kinds, self._decimal_comma = options.kinds, False
        self._strings = {text: place for place, text in enumerate(strings)}

    def read_csv(self, path: Path) -> RecordTable:
        table = csv_rows.Table.open(path)
        try:
            check_names(table.header[not table.header[0] :])
        except ValueError as error:
            raise ReadError(path, table.number, str(error)) from None
        self._decimal_comma = table.delimiter != ","
        rows = list(table.rows)
        numbers = [number for number, _ in rows]
        for number, row in rows:
            if len(row) < len(table.header):
                reason = f"{len(row)} columns; the header has {len(table.header)}"
                raise ReadError(path, number, reason)
        places = {name: place for place, name in enumerate(table.header) if name}
        cells = {
            name: [row[place].strip() for _, row in rows]
            for name, place in places.items()
        }
        for name, kind in self._kinds.items():
            if kind == "category" and name in cells:
                column = [cell.lower() for cell in cells[name]]
                if BOOLEANS.issuperset(column):  # as JSON and DataFrames have them
                    cells[name] = column
        return self._table(path, "line", cells, numbers)

    def read_lines(self, path: Path) -> RecordTable:
        lines = json_lines.numbered_records(path)
        first = next(lines, None)
        if first is None:
            raise ReadError(path, None, "no records in the file")
        everything = chain([first], lines)
        if "frames" in first[1]:
            reason = (
                "'frames' are numbers: --categories, --numbers and --time name keys"
            )
            raise ReadError(path, first[0], f"{reason} of 'records'")
        if "records" in first[1]:
            return self._nested(path, everything)
        rows = list(everything)
        names = list(first[1])
        for number, row in rows:
            for name in self._kinds:
                if name in names and name not in row:
                    raise ReadError(path, number, f"column {name!r:.80} is missing")
        cells = {name: [row.get(name) for _, row in rows] for name in names}
        return self._table(path, "line", cells, [number for number, _ in rows])

    def read_parquet(self, path: Path) -> RecordTable:
        try:
            from pyarrow import parquet
        except ImportError:
            reason = "reading Parquet needs the package pyarrow; install it, or use CSV"
            raise ReadError(path, None, reason) from None
        try:
            frame = parquet.read_table(path)
        except (OSError, ValueError) as error:
            raise ReadError(path, None, str(error)) from None
        return self.read_dataframe(path, frame, start=1)

    def read_dataframe(self, path: Path, frame: object, start: int = 0) -> RecordTable:
        import narwhals

        if narwhals.dependencies.is_pandas_dataframe(frame):
            frame = dataframe.with_named_columns(frame, self._expected)
        table: Any = narwhals.from_native(frame, eager_only=True)
        cells = {
            name: [*map(dataframe.cell, table[name].to_list())]
            for name in table.columns
        }
        return self._table(path, "row", cells, range(start, start + len(table)))

    def _table(
        self,
        path: Path,
        place: str,
        cells: Mapping[str, Sequence[Any]],
        numbers: Sequence[int],
    ) -> RecordTable:
        """Join the rows of a table to sequences."""
        try:
            layout = assign([*cells], self._expected)
        except ValueError as error:
            raise ReadError(path, None, str(error)) from None
        rows = LongRows(path, place, layout)
        times: np.ndarray | None = None
        features = []
        for name in layout.features:
            try:
                column = self._column(name, cells[name])
            except RecordError as error:
                reason = f"column {error.column!r:.80} {error.reason}"
                rows.fail(numbers[error.row], reason)
            if self._kinds[name] == "time":
                times, column = column, np.zeros(len(column))
            features.append(column)
        if len(numbers):
            rows.add(
                np.stack(features, axis=1),
                np.asarray(numbers),
                sequences=_texts(rows, numbers, cells, layout.sequence),
                names=_texts(rows, numbers, cells, layout.label),
                steps=_order(rows, numbers, cells, layout, times),
                split=_split(rows, numbers, cells, layout.split),
                groups=_texts(rows, numbers, cells, layout.group),
            )
        sequences = rows.finish()
        if times is not None:  # in the order of the sequences
            places = np.searchsorted(np.asarray(numbers), np.asarray(sequences.rows))
            times = times[places]
        return self._finish(sequences, times)

    def _nested(
        self, path: Path, lines: Iterator[tuple[int, dict[str, Any]]]
    ) -> RecordTable:
        """Read lines that are a sequence each."""
        columns = self._expected.columns
        frames_only = replace(self._expected, columns=replace(columns, ignore=()))
        table = json_lines.SequenceLines(frames_only)
        times: list[np.ndarray] = []
        for number, line in lines:
            events = line.pop("records", None)
            valid = isinstance(events, list) and bool(events)
            if not valid or not all(isinstance(event, dict) for event in events):
                raise ReadError(path, number, "'records' is not a list of objects")
            frames = []
            try:
                check_choices(list(events[0]), Columns(ignore=columns.ignore))
                for name, kind in self._kinds.items():
                    for row, event in enumerate(events):
                        if name not in event:
                            raise RecordError(row, name, "is missing")
                    column = self._column(name, [event[name] for event in events])
                    for row in np.flatnonzero(np.isnan(column))[:1].tolist():
                        raise RecordError(row, name, records.NULL)
                    if kind == "time":
                        times.append(column)
                        column = np.zeros(len(column))
                    frames.append(column)
                table.add({**line, "frames": np.stack(frames, 1).tolist()})
            except RecordError as error:
                reason = f"records[{error.row}].{error.column:.80} {error.reason}"
                raise ReadError(path, number, reason) from None
            except ValueError as error:
                raise ReadError(path, number, str(error)) from None
        joined = np.concatenate(times) if times else None
        return self._finish(table.finish(path), joined)

    def _column(self, name: str, cells: Sequence[Any]) -> np.ndarray:
        """Return a column as numbers, [R]; times in microseconds."""
        kind = self._kinds[name]
        if kind == "category":
            texts = records.convert(cells, name, records.to_category)
            numbers = self._strings
            codes = [numbers.setdefault(text, len(numbers)) for text in texts]
            return np.array(codes, np.float64)
        if kind == "time":
            return np.array(
                records.convert(cells, name, records.to_microseconds), np.int64
            )
        number = partial(_number, decimal_comma=self._decimal_comma)
        return np.array(records.convert(cells, name, number), np.float64)

    def _finish(self, sequences: Sequences, times: np.ndarray | None) -> RecordTable:
        if times is not None:
            seconds = np.diff(times, prepend=times[:1]) / records.SECOND
            seconds[sequences.offsets[:-1]] = 0
            for step in np.flatnonzero(seconds < 0)[:1].tolist():
                row = None if sequences.rows is None else int(sequences.rows[step])
                reason = "the time is earlier than the previous record's"
                if row is None:
                    at = int(np.searchsorted(sequences.offsets, step, "right")) - 1
                    place = step - int(sequences.offsets[at])
                    reason = f"sequence {sequences.ids[at]!r:.80}, records[{place}]: {reason}"
                raise ReadError(sequences.path, row, reason)
            index = [*self._kinds.values()].index("time")
            frames = sequences.frames.copy()
            frames[:, index] = np.log1p(seconds)
            sequences = replace(sequences, frames=frames)
        return RecordTable(sequences, tuple(self._strings), times, self._options)


def _number(value: object, *, decimal_comma: bool) -> float:
    if isinstance(value, str):
        if decimal_comma and csv_rows.DECIMAL_COMMA.fullmatch(value):
            value = value.replace(",", ".")
        try:
            return long_rows.parse_number(value)
        except ValueError:
            raise ValueError(f"is {value!r:.40}, not a number") from None
    if value is None:
        return float("nan")  # refused at the end, with a count
    return records.to_number(value)


def _texts(
    rows: LongRows,
    numbers: Sequence[int],
    cells: Mapping[str, Sequence[Any]],
    name: str | None,
) -> list[str] | None:
    """Return a special column of names."""
    if name is None:
        return None
    texts = []
    for row, value in enumerate(cells[name]):
        try:
            texts.append("" if value is None else to_text(value))
        except ValueError as error:
            rows.fail(numbers[row], f"column {name!r}: {error}")
        if not texts[-1]:
            rows.fail(numbers[row], f"column {name!r} is empty")
    return texts


def _order(
    rows: LongRows,
    numbers: Sequence[int],
    cells: Mapping[str, Sequence[Any]],
    layout: Layout,
    times: np.ndarray | None,
) -> np.ndarray | None:
    """Return what orders the rows of a sequence: the step column, or the times, of which
    equal ones keep their order; None if there are neither."""
    if layout.step is not None:
        try:
            return rows.parse_steps([str(v) for v in cells[layout.step]])
        except ValueError as error:
            index, reason = error.args
            rows.fail(numbers[index], f"column {layout.step!r} {reason}")
    if times is None:
        return None
    ranks = np.empty(len(times), np.int64)
    ranks[np.argsort(times, kind="stable")] = np.arange(len(times))
    return ranks


def _split(
    rows: LongRows,
    numbers: Sequence[int],
    cells: Mapping[str, Sequence[Any]],
    name: str | None,
) -> list[int] | None:
    if name is None:
        return None
    parts = []
    for row, value in enumerate(cells[name]):
        try:
            parts.append(long_rows.part(value))
        except ValueError as error:
            rows.fail(numbers[row], str(error))
    return parts
