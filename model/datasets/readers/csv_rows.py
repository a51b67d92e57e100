"""Read CSV in long form (see long_rows): a header, then one row for each step."""

import csv
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from model.datasets.dataset import Dataset, Task
from model.datasets.readers import files, long_rows

BLOCK = 8192  # Rows in memory as Python objects at a time.

Row = tuple[int, list[str]]  # Number of the line, cells.


def read(
    path: Path,
    *,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    rows = _rows(path)
    number, columns = next(rows, (None, []))
    if number is None:
        raise files.ReadError(path, None, "no rows in the file")
    columns = [column.strip() for column in columns]
    try:
        features = long_rows.feature_columns(columns)
    except ValueError as error:
        raise files.ReadError(path, number, str(error)) from None
    table = long_rows.LongRows(path, "line", features, classes)
    while block := list(islice(rows, BLOCK)):
        _add(table, columns, features, block)
    return table.finish(task)


def _rows(path: Path) -> Iterator[Row]:
    """Yield the rows that are not blank, with their line numbers."""
    text = (line for _, line in files.numbered_lines(path))
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise files.ReadError(path, reader.line_num, f"not CSV: {error}") from None


def _add(
    table: long_rows.LongRows,
    columns: list[str],
    features: list[str],
    block: list[Row],
) -> None:
    index = {column: place for place, column in enumerate(columns)}
    places = [index[feature] for feature in features]
    sequence, label = index["sequence"], index["label"]
    values = array("d")
    for number, cells in block:
        if len(cells) != len(columns):
            reason = f"{len(cells)} columns; the header has {len(columns)}"
            table.fail(number, reason)
        for column in long_rows.REQUIRED:
            if not cells[index[column]]:
                table.fail(number, f"column {column!r} is empty")
        try:
            values.extend([_number(cells[place]) for place in places])
        except ValueError:
            table.fail(number, _reason(cells, index, features))
    extra: dict[str, list[float]] = {"number": [number for number, _ in block]}
    if "step" in index:
        extra["step"] = [_step(table, *row, index["step"]) for row in block]
    if "split" in index:
        extra["split"] = [_part(table, *row, index["split"]) for row in block]
    table.add(
        np.frombuffer(values).reshape(len(block), len(features)),
        [cells[sequence] for _, cells in block],
        [cells[label] for _, cells in block],
        **extra,
    )


def _number(cell: str) -> float:
    if "_" in cell:  # Python reads 1_0 as 10.
        raise ValueError
    return float(cell)


def _reason(cells: list[str], index: dict[str, int], features: list[str]) -> str:
    """Name the first cell of a row that is not a number."""
    for feature in features:
        cell = cells[index[feature]]
        try:
            _number(cell)
        except ValueError:
            if not cell.strip():
                return f"column {feature!r} is empty"
            return f"column {feature!r} is {cell!r:.40}, not a number"
    raise AssertionError("all cells are numbers")


def _step(
    table: long_rows.LongRows, number: int, cells: list[str], place: int
) -> float:
    cell = cells[place]
    try:
        # Whole numbers stay exact: nanoseconds since 1970 do not fit a float.
        exact = cell.isdecimal() and len(cell) < 20 and int(cell) < 2**63
        return int(cell) if exact else _number(cell)
    except ValueError:
        table.fail(number, f"column 'step' is {cell!r:.40}, not a number")


def _part(table: long_rows.LongRows, number: int, cells: list[str], place: int) -> int:
    try:
        return long_rows.part(cells[place])
    except ValueError as error:
        table.fail(number, str(error))
