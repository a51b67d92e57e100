"""Files of sequences: JSON Lines, CSV, Parquet, NumPy archives, .ts.

ValueError
└── ReadError    path, line, reason: a file that does not hold sequences

Each format has a module that draws its layout.
"""

from collections.abc import Sequence
from pathlib import Path

from model.datasets import dataset as sets
from model.datasets.readers import csv_rows, json_lines, npz, parquet, ts
from model.datasets.readers.errors import ReadError

__all__ = ["FORMATS", "ReadError", "read"]

FORMATS = {
    ".jsonl": json_lines.read,
    ".ndjson": json_lines.read,
    ".npz": npz.read,
    ".csv": csv_rows.read,
    ".parquet": parquet.read,
    ".ts": ts.read,
}


def read(
    path: str | Path,
    *,
    task: sets.Task | None = None,
    classes: Sequence[str] | None = None,
) -> sets.Dataset:
    """Read a file in the format that its suffix names.

    Without `task` it is guessed: JSON Lines by the key `label` or `labels`, an
    archive by the shape of `y`, CSV and Parquet as classify where no label changes
    within a sequence (so a labelling file of constant labels is taken wrongly: say
    the task). Without `classes` they are those that the file declares, or else those
    found, whole numbers by value and text by alphabet.
    """
    path = Path(path)
    if task is not None and task not in sets.TASKS:
        raise ValueError(f"task is {task!r}; expected one of {sets.TASKS}")
    if classes is not None and (not classes or len(set(classes)) != len(classes)):
        raise ValueError("classes are given once each, and there is at least one")
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(FORMATS)
        reason = f"unknown format {path.suffix!r}; known are {known}"
        raise ReadError(path, None, reason)
    return reader(path, task=task, classes=classes)
