"""Read sequences from a DataFrame of pandas or polars: one row for each step.

Narwhals reads both, and neither needs to be installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.readers import files, long_rows, table_layout
from model.datasets.readers.sequences import Sequences, to_text
from model.datasets.readers.table_layout import Columns, Expected

NAME = Path("DataFrame")  # in messages


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
    import narwhals

    names = None if features is None else tuple(features)
    expected = Expected(columns, names, None, training, recorded)
    table: Any = narwhals.from_native(frame, eager_only=True)
    try:
        layout = table_layout.assign(table.columns, expected)
    except ValueError as error:
        raise files.ReadError(NAME, None, str(error)) from None
    rows = long_rows.LongRows(NAME, "row", layout)
    if len(table):
        rows.add(
            np.stack([_numbers(table, name) for name in layout.features], axis=1),
            np.arange(len(table)),
            sequences=_texts(rows, table, layout.sequence),
            names=_texts(rows, table, layout.label),
            steps=_steps(rows, table, layout.step),
            split=_split(rows, table, layout.split),
        )
    return rows.finish()


def _numbers(table: Any, name: str) -> np.ndarray:
    """Return a feature, [R] float64; NaN where it is missing."""
    import narwhals

    column = table[name]
    if not (column.dtype.is_numeric() or column.dtype == narwhals.Boolean):
        time = column.dtype.is_temporal()
        hint = "order the rows by it (step=...), or" if time else "if it is no feature,"
        reason = f"column {name!r} holds {column.dtype}; expected numbers"
        raise files.ReadError(NAME, None, f"{reason}: {hint} drop the column")
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
    return texts


def _steps(rows: long_rows.LongRows, table: Any, name: str | None) -> np.ndarray | None:
    """Return the step column: numbers, or times in microseconds."""
    if name is None:
        return None
    column = table[name]
    if column.null_count():
        rows.fail(
            int(column.is_null().to_numpy().argmax()), f"column {name!r} is empty"
        )
    if column.dtype.is_numeric():
        numbers: np.ndarray = column.to_numpy()
        return numbers
    cells = [
        value.isoformat() if hasattr(value, "isoformat") else str(value)
        for value in column.to_list()
    ]
    try:
        return long_rows.parse_steps(cells)
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
