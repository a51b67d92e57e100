"""Parquet in long form (see long_rows); needs pyarrow, an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import dataset as sets
from . import errors, labels, long_rows

BLOCK = 65536  # Rows that are decoded at a time.


def read(
    path: Path,
    *,
    task: sets.Task | None = None,
    classes: Sequence[str] | None = None,
) -> sets.Dataset:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        reason = "reading Parquet needs the package pyarrow; install it, or use CSV"
        raise errors.ReadError(path, None, reason) from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            try:
                features = long_rows.feature_columns(columns)
            except ValueError as error:
                raise errors.ReadError(path, None, str(error)) from None
            table = long_rows.LongRows(path, "row", features, classes)
            start = 1
            for batch in file.iter_batches(BLOCK):
                if batch.num_rows:
                    _add(table, features, batch, start)
                start += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise errors.ReadError(path, None, f"not Parquet: {reason}") from None
    except UnicodeDecodeError:  # Arrow decodes text only as it is asked for.
        raise errors.ReadError(path, None, "holds text that is not UTF-8") from None
    return table.finish(task)


def _add(
    table: long_rows.LongRows, features: list[str], batch: Any, start: int
) -> None:
    """Take a batch of rows, the first of which has the number `start`."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    extra: dict[str, Any] = {"number": np.arange(start, start + batch.num_rows)}
    if "step" in columns:
        extra["step"] = _numbers(table, "step", columns["step"], start)
    if "split" in columns:
        names = columns["split"].to_pylist()
        extra["split"] = [
            _checked(table, row, long_rows.part, name)
            for row, name in enumerate(names, start)
        ]
    table.add(
        np.stack(
            [
                _numbers(table, name, columns[name], start).astype(np.float64)
                for name in features
            ],
            axis=1,
        ),
        _texts(table, "sequence", columns["sequence"], start),
        _texts(table, "label", columns["label"], start),
        **extra,
    )


def _numbers(
    table: long_rows.LongRows, name: str, column: Any, start: int
) -> np.ndarray:
    """A column of numbers, [R]; row numbers begin at `start`."""
    import pyarrow

    kind = column.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
        reason = f"column {name!r} holds {kind}; expected numbers"
        raise errors.ReadError(table.path, None, reason)
    _refuse_nulls(table, name, column, start)
    return column.to_numpy(zero_copy_only=False)


def _texts(table: long_rows.LongRows, name: str, column: Any, start: int) -> list[str]:
    _refuse_nulls(table, name, column, start)
    values = [
        _checked(table, row, labels.text, value, f"column {name!r}: ")
        for row, value in enumerate(column.to_pylist(), start)
    ]
    if "" in values:
        table.fail(start + values.index(""), f"column {name!r} is empty")
    return values


def _refuse_nulls(
    table: long_rows.LongRows, name: str, column: Any, start: int
) -> None:
    if column.null_count:
        empty = column.is_null().to_numpy(zero_copy_only=False)
        table.fail(start + int(np.argmax(empty)), f"column {name!r} is empty")


def _checked(
    table: long_rows.LongRows, row: int, parse: Any, value: Any, prefix: str = ""
) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        table.fail(row, f"{prefix}{error}")
