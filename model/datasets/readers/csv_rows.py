"""Read CSV in long form (see long_rows): a header, then one row for each step.

The delimiter is a comma, semicolon, tab or bar, whichever divides the header into most
columns. Numbers may have a decimal comma unless commas divide the columns.
"""

import csv
import re
from array import array
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from model.datasets.dataset import default_features
from model.datasets.readers import files, long_rows, table_layout
from model.datasets.readers.sequences import Sequences
from model.datasets.readers.table_layout import Expected, Layout

BLOCK = 8192  # Rows in memory as Python objects at a time.
DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")

Row = tuple[int, list[str]]  # Number of the line, cells.


def read(path: Path, expected: Expected) -> Sequences:
    lines = (line for _, line in files.numbered_lines(path))
    head = [next(lines, "")]
    while head[-1] and not head[-1].strip():  # a blank line
        head.append(next(lines, ""))
    delimiter = _sniff(head[-1])
    rows = _rows(path, chain(head, lines), delimiter)
    number, header = next(rows, (None, []))
    if number is None:
        raise files.ReadError(path, None, "no rows in the file")
    header = [column.strip() for column in header]
    if all(map(long_rows.is_number, header)):
        rows = chain([(number, header)], rows)
        header = _names(path, len(header), expected)
    try:
        layout = table_layout.assign(header, expected)
    except ValueError as error:
        raise files.ReadError(path, number, str(error)) from None
    table = _Table(long_rows.LongRows(path, "line", layout), header, delimiter)
    while block := list(islice(rows, BLOCK)):
        table.add(block)
    return table.rows.finish()


def _names(path: Path, count: int, expected: Expected) -> list[str]:
    """Return names for the columns of a file without a header: they go by their places."""
    names = list(expected.features or default_features(count))
    reason = "the first line has numbers in place of the columns' names"
    if expected.training:
        raise files.ReadError(path, 1, reason)
    if len(names) != count:
        takes = f"{reason}, and {count} columns; the network takes {len(names)}"
        raise files.ReadError(path, 1, takes)
    return names


def _sniff(line: str) -> str:
    """Return the delimiter that divides a line into most columns."""

    def count(delimiter: str) -> int:
        try:
            reader = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
            return len(next(reader, []))
        except csv.Error:
            return 0

    return max(DELIMITERS, key=count)


def _rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows that are not blank, with their line numbers."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise files.ReadError(path, reader.line_num, f"not CSV: {error}") from None


class _Table:
    """Parses blocks of rows."""

    def __init__(self, rows: long_rows.LongRows, header: list[str], delimiter: str):
        self.rows, self._width = rows, len(header)
        self._place = {column: place for place, column in enumerate(header)}
        self._decimal_comma = delimiter != ","

    def add(self, block: list[Row]) -> None:
        layout: Layout = self.rows.layout
        places = [self._place[feature] for feature in layout.features]
        values = array("d")
        for number, cells in block:
            if len(cells) != self._width:
                reason = f"{len(cells)} columns; the header has {self._width}"
                self.rows.fail(number, reason)
            chosen = [cells[place] for place in places]
            try:
                if "_" in "".join(chosen):  # Python reads 1_0 as 10.
                    raise ValueError
                values.extend(list(map(float, chosen)))
            except ValueError:
                values.extend(list(self._numbers(number, chosen)))
        numbers = [number for number, _ in block]
        self.rows.add(
            np.frombuffer(values).reshape(len(block), len(places)),
            numbers,
            sequences=self._texts(block, layout.sequence),
            names=self._texts(block, layout.label),
            steps=self._steps(block, layout.step),
            split=self._split(block, layout.split),
        )

    def _numbers(self, number: int, cells: list[str]) -> Iterator[float]:
        """Yield the features of a row with missing numbers, decimal commas, or text."""
        for column, cell in zip(self.rows.layout.features, cells, strict=True):
            if self._decimal_comma and DECIMAL_COMMA.fullmatch(cell):
                cell = cell.replace(",", ".")
            try:
                yield long_rows.parse_number(cell)
            except ValueError:
                reason = f"column {column!r} is {cell!r:.40}, not a number"
                more = "; if it is no feature, leave it out (--ignore)"
                if _is_time(cell):
                    more = "; order the rows by it (--step-column), or --ignore it"
                self.rows.fail(number, reason + more)

    def _texts(self, block: list[Row], column: str | None) -> list[str] | None:
        if column is None:
            return None
        place = self._place[column]
        for number, cells in block:
            if not cells[place]:
                self.rows.fail(number, f"column {column!r} is empty")
        return [cells[place] for _, cells in block]

    def _steps(self, block: list[Row], column: str | None) -> np.ndarray | None:
        cells = self._texts(block, column)
        if cells is None:
            return None
        try:
            return long_rows.parse_steps(cells)
        except ValueError as error:
            index, reason = error.args
            self.rows.fail(block[index][0], f"column {column!r} {reason}")

    def _split(self, block: list[Row], column: str | None) -> list[int] | None:
        if column is None:
            return None
        parts = []
        for number, cells in block:
            try:
                parts.append(long_rows.part(cells[self._place[column]]))
            except ValueError as error:
                self.rows.fail(number, str(error))
        return parts


def _is_time(cell: str) -> bool:
    try:
        long_rows.parse_time(cell)
    except ValueError:
        return False
    return True
