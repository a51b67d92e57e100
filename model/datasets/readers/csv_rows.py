"""Read CSV in long form (see long_rows): a header, then one row for each step.

The delimiter is a comma, semicolon, tab or bar, whichever divides the header into most
columns; or the one of a first line `sep=;`. Numbers may have a decimal comma unless
commas divide the columns. Blank rows, blank columns at the end, and a first column
without a name (a DataFrame's index) are left out.
"""

import csv
import re
from array import array
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.datasets.dataset import default_features
from model.datasets.readers import files, long_rows, table_layout
from model.datasets.readers.sequences import Sequences
from model.datasets.readers.table_layout import Expected, Layout

FIELD_BYTES = 2**27  # the longest text in a cell
BLOCK = 8192  # Rows in memory as Python objects at a time.
DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r"sep=([^\w\s\"]|\t)\s*", re.IGNORECASE)  # Excel's first line
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
HINTS = (  # how to go on after text where a number belongs
    (r"true|false", "write 1 for true and 0 for false"),
    (
        r"\d{4}-\d\d-\d\d.*",
        "order the rows by it (--step-column), or --ignore it",
    ),
    (
        r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}.*|\d{1,2}:\d\d.*",
        "write times as 2026-01-31 12:00:00 to order the rows by them (--step-column),"
        " or --ignore it",
    ),
    (
        r"[+-]?\d[\d.,' ]*",
        "write a decimal point, and nothing between thousands",
    ),
    (r"[+-]?\d[\d.,]*\s*\D{1,5}", "write the number without its unit"),
    (r".*", "if it is no feature, leave it out (--ignore)"),
)

Row = tuple[int, list[str]]  # Number of the line, cells.


def read(path: Path, expected: Expected) -> Sequences:
    table = Table.open(path)
    number, header, rows = table.number, table.header, table.rows
    delimiter = table.delimiter
    named = expected.features and set(expected.features) <= set(header)
    if not named and all(_is_number(cell, delimiter) for cell in header):
        rows = chain([(number, header)], rows)
        header = _names(path, len(header), expected)
    if len(header) == 1 and expected.training:
        reason = f"a single column, {header[0]!r:.80}: divide columns by commas,"
        raise files.ReadError(path, number, f"{reason} semicolons, tabs or bars")
    try:
        layout = table_layout.assign(header[not header[0] :], expected)
    except ValueError as error:
        raise files.ReadError(path, number, str(error)) from None
    parser = _Parser(long_rows.LongRows(path, "line", layout), header, delimiter)
    while block := list(islice(rows, BLOCK)):
        parser.add(block)
    return parser.rows.finish()


class Table(NamedTuple):
    """A file's header, and the rows after it."""

    number: int  # of the header's line
    header: list[str]
    rows: Iterator[Row]  # that are not blank
    delimiter: str

    @classmethod
    def open(cls, path: Path) -> "Table":
        """Read a file's header.

        Raises:
            ReadError: the file can't be read, or is empty.
        """
        lines = (line for _, line in files.numbered_lines(path))
        head = [next(lines, "")]
        while head[-1] and not head[-1].strip():  # a blank line
            head.append(next(lines, ""))
        separator = SEPARATOR.fullmatch(head[-1])
        delimiter = separator[1] if separator else _sniff(head[-1])
        rows = _rows(path, chain(head, lines), delimiter)
        if separator:
            next(rows)
        number, header = next(rows, (None, []))
        if number is None:
            raise files.ReadError(path, None, "no rows in the file")
        header = [column.strip() for column in header]
        while len(header) > 1 and not header[-1]:
            header.pop()
        return cls(number, header, rows, delimiter)


def named_rows(path: Path, text: str) -> files.Rows:
    """Return the cells of each row, without the spaces around them.

    Args:
        text: the column of texts, which stay as they are.

    Raises:
        ReadError: the header can't be read, or a column has no name or that of another.
    """
    csv.field_size_limit(FIELD_BYTES)
    table = Table.open(path)
    names = table.header[not table.header[0] :]
    try:
        table_layout.check_names(names)
    except ValueError as error:
        raise files.ReadError(path, table.number, str(error)) from None

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        width = len(table.header)
        for line, cells in table.rows:
            if len(cells) < width or any(map(str.strip, cells[width:])):
                reason = (
                    f"{len(cells)} columns; the header has {width}: put a text that"
                )
                reason = f"{reason} has a {table.delimiter!r} into quotes"
                raise files.ReadError(path, line, reason)
            named = zip(names, cells[width - len(names) :], strict=False)
            yield line, {name: c if name == text else c.strip() for name, c in named}

    return files.Rows(names, table.number, rows())


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
    """Return the delimiter that divides a line into most columns.

    Cells that are all numbers decide: a comma may also be part of a number.
    """

    def divide(delimiter: str) -> list[str]:
        try:
            reader = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
            return next(reader, [])
        except csv.Error:
            return []

    for delimiter in DELIMITERS[1:]:
        cells = divide(delimiter)
        if len(cells) > 1 and all(_is_number(cell, delimiter) for cell in cells):
            return delimiter
    return max(DELIMITERS, key=lambda delimiter: len(divide(delimiter)))


def _is_number(cell: str, delimiter: str) -> bool:
    """Return true for a number, or a cell that is missing one."""
    comma = delimiter != "," and DECIMAL_COMMA.fullmatch(cell)
    return bool(comma) or long_rows.is_number(cell)


def _rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows that are not blank, with their line numbers."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if cells and (cells[0].strip() or any(map(str.strip, cells))):
                yield reader.line_num, cells
    except csv.Error as error:
        reason = f"not CSV: {error}"
        if "new-line character" in reason:
            reason = (
                "a carriage return without a line feed: save it with other line ends"
            )
        raise files.ReadError(path, reader.line_num, reason) from None


class _Parser:
    """Parses blocks of rows."""

    def __init__(self, rows: long_rows.LongRows, header: list[str], delimiter: str):
        self.rows, self._width = rows, len(header)
        self._place = {column: place for place, column in enumerate(header)}
        self._decimal_comma = delimiter != ","
        self._first_comma: int | None = None  # the line with the first one
        self._has_points = False

    def add(self, block: list[Row]) -> None:
        layout: Layout = self.rows.layout
        places = [self._place[feature] for feature in layout.features]
        values = array("d")
        for number, cells in block:
            if len(cells) != self._width and not self._ends_blank(cells):
                reason = f"{len(cells)} columns; the header has {self._width}"
                self.rows.fail(number, reason)
            chosen = [cells[place] for place in places]
            text = "".join(chosen)
            self._has_points |= "." in text
            try:
                if "_" in text:  # Python reads 1_0 as 10.
                    raise ValueError
                values.extend(list(map(float, chosen)))
            except ValueError:
                values.extend(list(self._numbers(number, chosen)))
        if self._first_comma and self._has_points:
            reason = "has a decimal comma, and other numbers have a decimal point"
            self.rows.fail(self._first_comma, f"{reason}: write one of them")
        numbers = [number for number, _ in block]
        self.rows.add(
            np.frombuffer(values).reshape(len(block), len(places)),
            numbers,
            sequences=self._texts(block, layout.sequence),
            names=self._texts(block, layout.label),
            steps=self._steps(block, layout.step),
            split=self._split(block, layout.split),
            groups=self._texts(block, layout.group),
        )

    def _ends_blank(self, cells: list[str]) -> bool:
        """Return true if a row is too long by blank cells only."""
        more = cells[self._width :]
        return bool(more) and not any(map(str.strip, more))

    def _numbers(self, number: int, cells: list[str]) -> Iterator[float]:
        """Yield the features of a row with missing numbers, decimal commas, or text."""
        for column, cell in zip(self.rows.layout.features, cells, strict=True):
            if self._decimal_comma and DECIMAL_COMMA.fullmatch(cell):
                cell = cell.replace(",", ".")
                self._first_comma = self._first_comma or number
            try:
                yield long_rows.parse_number(cell)
            except ValueError:
                reason = f"column {column!r} is {cell!r:.40}, not a number"
                self.rows.fail(number, f"{reason}; {_hint(column, cell)}")

    def _texts(self, block: list[Row], column: str | None) -> list[str] | None:
        if column is None:
            return None
        place = self._place[column]
        texts = [cells[place].strip() for _, cells in block]
        if "" in texts:
            number, _ = block[texts.index("")]
            self.rows.fail(number, f"column {column!r} is empty")
        return texts

    def _steps(self, block: list[Row], column: str | None) -> np.ndarray | None:
        cells = self._texts(block, column)
        if cells is None:
            return None
        try:
            return self.rows.parse_steps(cells)
        except ValueError as error:
            index, reason = error.args
            self.rows.fail(block[index][0], f"column {column!r} {reason}")

    def _split(self, block: list[Row], column: str | None) -> list[int] | None:
        if column is None:
            return None
        parts = []
        for number, cells in block:
            try:
                parts.append(long_rows.part(cells[self._place[column]].strip()))
            except ValueError as error:
                self.rows.fail(number, str(error))
        return parts


def _hint(column: str, cell: str) -> str:
    """Return how to go on after text where a number belongs."""
    if cell.strip() == column:
        return "if it is the header again, remove the line"
    text = cell.strip().lower()
    return next(hint for form, hint in HINTS if re.fullmatch(form, text, re.DOTALL))
