"""Copy columns of a file to the table of its answers: the option `--keep`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.answers import Table
from model.datasets.dataset import Task
from model.datasets.readers import ReadError, Sequences, csv_rows, json_lines, parquet
from model.datasets.readers.files import Rows
from model.datasets.readers.table_layout import missing

READ = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}


def add(
    table: Table, path: Path, data: Sequences, task: Task, names: Sequence[str]
) -> Table:
    """Return the table with these columns, as text; of the rows of a sequence the first.

    Raises:
        ReadError: the file has no such column, or no rows with columns.
        ValueError: the table has such a column already.
    """
    for name in names:
        if name in table:
            raise ValueError(f"--keep {name}: the answers have a column of that name")
    if data.rows is None or path.suffix.lower() not in READ:
        raise ReadError(path, None, "--keep needs a table with a row for each step")
    rows = np.asarray(data.rows)
    if task == "classify":
        places = [row.place for row in data.empty]
        rows = rows[data.offsets[:-1]]
        rows = np.insert(rows, places, [row.line for row in data.empty])
    places_of: dict[int, list[int]] = {}  # a line may hold several steps
    for number, row in enumerate(rows.tolist()):
        places_of.setdefault(row, []).append(number)
    source = _rows(path, names)
    for name in names:
        if name not in source.header:
            reason = missing(name, source.header, "column to keep")
            raise ReadError(path, source.line, reason)
    kept: dict[str, list[str | None]] = {name: [None] * len(rows) for name in names}
    for row, cells in source.rows:
        for number in places_of.get(row, ()):
            for name, values in kept.items():
                values[number] = _text(cells.get(name))
    return {**table, **kept}


def _rows(path: Path, names: Sequence[str]) -> Rows:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return json_lines.named_rows(path)
    if suffix != ".parquet":
        return csv_rows.named_rows(path, "")
    return parquet.named_rows(path, names)


def _text(value: Any) -> str | None:
    """Return a cell as text; a time as ISO 8601."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return json.dumps(value, default=str)
