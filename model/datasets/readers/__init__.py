"""Read sequences from files (CSV, Parquet, JSON Lines, NumPy archives, .ts) and DataFrames.

ValueError
└── ReadError    path, line, reason: a file that does not hold sequences

Training, evaluation, the commands and the clients all read by these functions, so a file
gives the same sequences everywhere. Each format's module shows the layout of its files.
Nothing here imports TensorFlow.
"""

from collections.abc import Sequence
from pathlib import Path

from model.datasets.dataset import TASKS, Dataset, Task
from model.datasets.readers import csv_rows, json_lines, npz, parquet, ts
from model.datasets.readers.dataframe import from_dataframe, is_dataframe
from model.datasets.readers.files import ReadError
from model.datasets.readers.sequences import Sequences
from model.datasets.readers.table_layout import Columns, Expected, from_names

__all__ = [
    "FORMATS",
    "Columns",
    "ReadError",
    "Sequences",
    "from_dataframe",
    "from_names",
    "is_dataframe",
    "read",
    "read_sequences",
]

FORMATS = {
    ".jsonl": json_lines.read,
    ".ndjson": json_lines.read,
    ".npz": npz.read,
    ".csv": csv_rows.read,
    ".tsv": csv_rows.read,
    ".parquet": parquet.read,
    ".ts": ts.read,
}


def read(
    path: str | Path, *, task: Task | None = None, columns: Columns = Columns()
) -> Dataset:
    """Read a file of labelled sequences in the format that its suffix names.

    Without `task` it is inferred: from the key `label` or `labels` (JSON Lines), from
    the shape of `y` (NumPy), and otherwise as classify if no label changes within a
    sequence. The classes are those that the file declares, or else all labels, whole
    numbers by value and text by alphabet.

    Raises:
        ReadError: the file does not hold labelled sequences.
    """
    return read_sequences(path, columns, task=task, training=True).dataset(task)


def read_sequences(
    path: str | Path,
    columns: Columns = Columns(),
    features: Sequence[str] | None = None,
    *,
    task: Task | None = None,
    training: bool = False,
    recorded: Columns = Columns(),
) -> Sequences:
    """Read a file of sequences; they need no labels.

    Args:
        columns: the names of a table's special columns.
        features: the names of a network's features. Columns are matched by them, in any
            order, and others are left out. None: every column that is not special.
        task: needed if an archive's labels could be for sequences or for steps.
        training: true if labels and ids of sequences are required.
        recorded: the names that a network was trained with (`from_names`), for those
            that `columns` leaves open and the table has.

    Raises:
        ReadError: the file can't be read, or a column is missing; names the line.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {TASKS}")
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        reason = f"unknown format {path.suffix!r}; known are {', '.join(FORMATS)}"
        raise ReadError(path, None, reason)
    names = None if features is None else tuple(features)
    return reader(path, Expected(columns, names, task, training, recorded))
