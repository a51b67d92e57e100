"""The table of a network's answers for sequences, and files of it.

run   label  probability  probability_off  probability_ok        classify: a row a sequence
m000  ok     0.75         0.25             0.75

run   time  label  probability  probability_off  probability_ok  label: a row a step
m000  0.1   ok     0.75         0.25             0.75
m000  0.2   off    0.5          0.5              0.5

The columns of ids and steps have the names that they have in the file. Where labels are
known, the column `true_label` follows `probability`. The column `probability_CLASS` has
the probability of a class, so a class may have any name, even `label`.
"""

import csv
import io
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from model.datasets.dataset import Task
from model.datasets.readers.sequences import Sequences

PREFIX = "probability_"
BLOCK = 8192  # rows in memory as Python objects at a time
# Spreadsheets run a cell that begins so as a formula, if it calls something.
FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20].*[(|!]", re.DOTALL)

Table = dict[str, list[str] | list[str | None] | NDArray[Any]]


def columns(
    task: Task,
    classes: Sequence[str],
    ids: Sequence[str],
    probabilities: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    *,
    steps: Sequence[NDArray[Any]] | None = None,
    labels: Sequence[Sequence[str] | None] | None = None,
    id_column: str | None = None,
    step_column: str | None = None,
) -> Table:
    """Return the table of the answers for N sequences, by columns.

    Args:
        task: "classify" for a row for each sequence, "label" for a row for each step.
        ids: [N].
        probabilities: for each sequence [C] (classify) or [T, C] (label).
        steps: for each sequence its step column, [T]; None: 1, 2, 3, ...
        labels: for each sequence its known label, or those of its T steps; None where
            they are unknown.
        id_column, step_column: names of the first columns. Default: `sequence`, `step`.
    """
    shape = (-1, len(classes))
    joined = list(probabilities) or [np.zeros((0, len(classes)))]
    scores = np.concatenate([np.asarray(p).reshape(shape) for p in joined])
    scores = scores.astype(np.float32, copy=False)  # [rows, C]
    best = scores.argmax(1)
    answers: Table = {
        "label": [classes[code] for code in best.tolist()],
        "probability": scores[np.arange(len(best)), best],
    }
    lengths = [1 if task == "classify" else len(p) for p in probabilities]
    if labels is not None:
        known = zip(labels, lengths, strict=True)
        answers["true_label"] = list(
            chain.from_iterable(repeat(None, n) if x is None else x for x, n in known)
        )
    answers |= {PREFIX + name: scores[:, code] for code, name in enumerate(classes)}
    first: Table = {}
    if task == "label":
        if steps is None:
            steps = [np.arange(1, length + 1) for length in lengths]
        name = _free(step_column, "step", answers)
        first[name] = np.concatenate([*steps]) if len(steps) else np.zeros(0, int)
    repeated = chain.from_iterable(map(repeat, ids, lengths))
    name = _free(id_column, "sequence", first | answers)
    return {name: list(repeated)} | first | answers


def of_sequences(
    data: Sequences,
    task: Task,
    classes: Sequence[str],
    probabilities: Sequence[NDArray[np.float32]],
) -> Table:
    """Return the table of the answers for the sequences of a file or a DataFrame.

    Its ids, steps and labels are taken over; the arguments are those of `columns`.
    """
    places = range(len(data))
    labels = [data.labels_of(place, task) for place in places]
    table = columns(
        task,
        classes,
        data.ids,
        probabilities,
        steps=[data.steps_of(place) for place in places],
        labels=labels if any(known is not None for known in labels) else None,
        id_column=data.columns.sequence,
        step_column=data.columns.step,
    )
    if data.integer_ids:  # so that the table can be joined with the data
        name = next(iter(table))
        table[name] = np.array(table[name], np.int64)
    return table


def with_empty(table: Table, data: Sequences) -> Table:
    """Return a table to classify with a row for each text that is empty: its id alone."""
    places = [row.place for row in data.empty]
    result: Table = {}
    for name, values in table.items():
        fill: Any = None if result else [row.id for row in data.empty]
        if isinstance(values, np.ndarray):
            result[name] = np.insert(values, places, np.nan if result else fill)
        else:
            result[name] = np.insert(np.array(values, object), places, fill).tolist()
    return result


def writer(target: str | Path) -> Callable[[Table, bool], None]:
    """Return a function that writes a table, in the format that the suffix names.

    Its arguments are a table, and whether times have a zone: then they are written as UTC.
    A file appears whole or not at all. In CSV a text that a spreadsheet would run as a
    formula gets an apostrophe before it; the other formats keep it.

    Args:
        target: the file; "-" is CSV on standard output.

    Raises:
        ValueError: the format is unknown, its package is missing, or there is no such
            folder. The function itself raises OSError.
    """
    if str(target) == "-":
        return lambda table, utc: _write_csv(table, sys.stdout.buffer, utc)
    path = Path(target)
    write = FORMATS.get(path.suffix.lower())
    if write is None:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {path.suffix!r}; known are {known}")
    if write is _write_parquet and find_spec("pyarrow") is None:
        reason = "Parquet needs the package pyarrow; install it, or write .csv"
        raise ValueError(f"{path}: {reason}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    return lambda table, utc: _replace(path, lambda file: write(table, file, utc))


def _free(name: str | None, default: str, taken: Iterable[str]) -> str:
    """Return the name of a column, or another if there is such a column already."""
    used = set(taken)
    return next(n for n in (name or default, default, "id", "time") if n not in used)


def _replace(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    path = path.resolve()  # of a link the file changes, and not the link
    if path.exists() and not path.is_file():  # such as a pipe
        with path.open("wb") as file:
            write(file)
        return
    draft = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        with draft.open("xb") as file:
            if path.exists():  # answers that only some may read stay so
                draft.chmod(path.stat().st_mode & 0o777)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write_csv(table: Table, file: IO[bytes], utc: bool) -> None:
    def cell(text: str | None) -> str:
        return f"'{text}" if text and FORMULA.match(text) else text or ""

    def write(rows: Iterable[Iterable[str]]) -> None:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        file.write(lines.getvalue().encode("utf-8", "backslashreplace"))

    write([map(cell, table)])
    for block in _blocks(table, cell, utc):
        write(zip(*block, strict=True))
    file.flush()


def _write_json_lines(table: Table, file: IO[bytes], utc: bool) -> None:
    def cell(text: str | None) -> str:
        return json.dumps(text, ensure_ascii=False)

    keys = [cell(name) for name in table]
    for block in _blocks(table, cell, utc, quote='"'):
        for row in zip(*block, strict=True):
            members = ", ".join(map("{}: {}".format, keys, row))
            file.write(f"{{{members}}}\n".encode("utf-8", "backslashreplace"))


def _write_parquet(table: Table, file: IO[bytes], utc: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    def type_of(values: object) -> pyarrow.DataType | None:
        if not isinstance(values, np.ndarray):
            return pyarrow.string()
        times = utc and values.dtype.kind == "M"
        return pyarrow.timestamp("us", "UTC") if times else None

    arrays = {n: pyarrow.array(v, type_of(v)) for n, v in table.items()}
    parquet.write_table(pyarrow.table(arrays), file)


FORMATS: dict[str, Callable[[Table, IO[bytes], bool], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
    ".parquet": _write_parquet,
}


def _blocks(
    table: Table, cell: Callable[[str | None], str], utc: bool, quote: str = ""
) -> Iterator[list[list[str]]]:
    """Yield some rows at a time, the cells of each column as text.

    Args:
        cell: returns a text as it is written.
        utc: write the zone of times.
        quote: around times.
    """
    columns = [_whole_seconds(values) for values in table.values()]
    rows = max(map(len, columns), default=0)
    for start in range(0, rows, BLOCK):
        block = []
        for values in columns:
            part = values[start : start + BLOCK]
            if isinstance(part, np.ndarray):
                block.append(_texts(part, quote, utc))
            else:
                written = {text: cell(text) for text in set(part)}
                block.append([written[text] for text in part])
        yield block


def _whole_seconds(values: Any) -> Any:
    """Return times in seconds, if none has a part of one, and other columns as they are."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        seconds = values.astype("datetime64[s]")
        return seconds if (seconds == values).all() else values
    return values


def _texts(values: NDArray[Any], quote: str, utc: bool) -> list[str]:
    """Return numbers with as few digits as their type needs, or times as ISO 8601; in CSV
    nothing for NaN."""
    if values.dtype.kind == "M":
        times = np.datetime_as_string(
            values, timezone="UTC" if utc else "naive"
        ).tolist()
        return [f"{quote}{time}{quote}" for time in times]
    whole = np.ascontiguousarray(values)
    numbers = orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    text = numbers[1:-1].decode()
    return (text if quote else text.replace("null", "")).split(",")
