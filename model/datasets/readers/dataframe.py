"""Read sequences from a DataFrame of pandas or polars: one row for each step.

Narwhals reads both, and neither needs to be installed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.readers import long_rows, table_layout
from model.datasets.readers.files import ReadError, Rows
from model.datasets.readers.sequences import Sequences, to_text
from model.datasets.readers.table_layout import Columns, Expected

NAME = Path("DataFrame")  # in messages
# Options of the commands, and arguments of another name in their place.
ARGUMENTS = {
    "sequence-column": "by",
    "label-column": "label",
    "step-column": "step",
    "group-column": "group",
}
OPTION = re.compile(r"--(\w+(?:-\w+)*)(=?)")
MISSING = {"nan", "nat", "<na>"}  # as text


def is_dataframe(value: object) -> bool:
    """Return true for a DataFrame that `from_dataframe` can read."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return False
    import narwhals

    frame = narwhals.from_native(value, pass_through=True, eager_only=True)
    return isinstance(frame, narwhals.DataFrame)


def from_dataframe(
    frame: object,
    columns: Columns = Columns(),
    features: Sequence[str] | None = None,
    *,
    training: bool = False,
    recorded: Columns = Columns(),
) -> Sequences:
    """Read the rows of a DataFrame.

    Args:
        frame: of pandas, polars, or another library that Narwhals knows.
        columns, features, training, recorded: see `readers.read_sequences`.

    Raises:
        ReadError: a column is missing, or holds other values than expected; names the
            row, from 0.
        TypeError: it is no DataFrame.
    """
    names = None if features is None else tuple(features)
    with naming_arguments():
        return _read(frame, Expected(columns, names, None, training, recorded))


def as_arguments(text: str) -> str:
    """Return a message with the arguments in Python in place of a command's options."""

    def argument(option: re.Match[str]) -> str:
        name = ARGUMENTS.get(option[1], option[1].replace("-", "_"))
        return f"{name}={'' if option[2] else '...'}"

    return OPTION.sub(argument, text)


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Raise errors about a DataFrame again with the names of arguments."""
    try:
        yield
    except ReadError as error:
        raise ReadError(NAME, error.line, as_arguments(error.reason)) from None


def named_rows(frame: Any, expected: Expected) -> Rows:
    """Return the cells of each row, with None where one is missing.

    Raises:
        ReadError: a column has no name or that of another.
    """
    import narwhals

    try:
        if narwhals.dependencies.is_pandas_dataframe(frame):
            frame = with_named_columns(frame, expected)
        table: Any = narwhals.from_native(frame, eager_only=True)
    except ValueError as error:
        raise ReadError(NAME, None, str(error)) from None
    rows = (
        (number, {name: cell(value) for name, value in row.items()})
        for number, row in enumerate(table.iter_rows(named=True))
    )
    return Rows(list(table.columns), None, rows)


def cell(value: Any) -> Any:
    """Return a cell as JSON has it."""
    if isinstance(value, (str, list)):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return None if text.lower() in MISSING else text
    if value is None or str(value).lower() in MISSING:
        return None
    return value.item() if isinstance(value, np.generic) else value


def _read(frame: object, expected: Expected) -> Sequences:
    import narwhals

    try:
        if narwhals.dependencies.is_pandas_dataframe(frame):
            frame = with_named_columns(frame, expected)
        table: Any = narwhals.from_native(frame, eager_only=True)
        layout = table_layout.assign(table.columns, expected)
    except ValueError as error:
        raise ReadError(NAME, None, str(error)) from None
    rows = long_rows.LongRows(NAME, "row", layout)
    if len(table):
        rows.add(
            np.stack([_numbers(table, name) for name in layout.features], axis=1),
            np.arange(len(table)),
            sequences=_texts(rows, table, layout.sequence),
            names=_texts(rows, table, layout.label),
            steps=_steps(rows, table, layout.step),
            split=_split(rows, table, layout.split),
            groups=_texts(rows, table, layout.group),
        )
    sequences = rows.finish()
    if layout.sequence is not None and table[layout.sequence].dtype.is_integer():
        return replace(sequences, integer_ids=True)
    return sequences


def with_named_columns(frame: Any, expected: Expected) -> Any:
    """Return a DataFrame of pandas whose columns all have text as their names.

    The levels of the index that are looked for become columns.
    """
    special = {*(expected.features or ()), table_layout.SPLIT}
    for name in table_layout.SPECIAL:
        special.update(table_layout.special_names(expected, name))
    header = [str(name) for name in frame.columns]
    frame = frame.set_axis(header, axis="columns")
    table_layout.check_names(header)
    levels = [name for name in frame.index.names if name in special.difference(header)]
    return frame.reset_index(level=levels) if levels else frame


def _numbers(table: Any, name: str) -> np.ndarray:
    """Return a feature, [R] float64; NaN where it is missing."""
    import narwhals

    column = table[name]
    if not (column.dtype.is_numeric() or column.dtype == narwhals.Boolean):
        time = column.dtype.is_temporal()
        hint = "order the rows by it (step=...), or" if time else "if it is no feature,"
        reason = f"column {name!r} holds {column.dtype}; expected numbers"
        raise ReadError(NAME, None, f"{reason}: {hint} drop the column")
    values: np.ndarray = column.cast(narwhals.Float64).to_numpy()
    return values.astype(np.float64)


def _texts(
    rows: long_rows.LongRows, table: Any, name: str | None
) -> Sequence[str] | None:
    if name is None:
        return None
    column = table[name]
    if column.null_count():
        rows.fail(
            int(column.is_null().to_numpy().argmax()), f"column {name!r} is empty"
        )
    texts = []
    for row, value in enumerate(column.to_list()):
        try:
            texts.append(to_text(value))
        except ValueError as error:
            rows.fail(row, f"column {name!r}: {error}")
    if "" in texts:
        rows.fail(texts.index(""), f"column {name!r} is empty")
    return texts


def _steps(rows: long_rows.LongRows, table: Any, name: str | None) -> np.ndarray | None:
    """Return the step column: numbers, or times in microseconds."""
    import narwhals

    if name is None:
        return None
    column = table[name]
    if column.null_count():
        rows.fail(
            int(column.is_null().to_numpy().argmax()), f"column {name!r} is empty"
        )
    if column.dtype.is_decimal():
        column = column.cast(narwhals.Float64)
    if column.dtype.is_numeric():
        numbers: np.ndarray = column.to_numpy()
        return numbers
    cells = [
        value.isoformat() if hasattr(value, "isoformat") else str(value)
        for value in column.to_list()
    ]
    try:
        return rows.parse_steps(cells)
    except ValueError as error:
        index, reason = error.args
        rows.fail(index, f"column {name!r} {reason}")


def _split(rows: long_rows.LongRows, table: Any, name: str | None) -> list[int] | None:
    if name is None:
        return None
    parts = []
    for row, value in enumerate(table[name].to_list()):
        try:
            parts.append(long_rows.part(value))
        except ValueError as error:
            rows.fail(row, str(error))
    return parts
