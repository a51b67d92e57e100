"""Read files of sequences: JSON Lines, CSV, Parquet, NumPy archives, .ts.

ValueError
└── ReadError    path, line, reason: a file that does not hold sequences

Each format's module shows the layout of its files.
"""

from collections.abc import Sequence
from pathlib import Path

from model.datasets.dataset import TASKS, Dataset, Task
from model.datasets.readers import csv_rows, json_lines, npz, parquet, ts
from model.datasets.readers.files import ReadError

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
    task: Task | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Read a file in the format that its suffix names.

    Without `task` it is inferred: from the key `label` or `labels` (JSON Lines), from
    the shape of `y` (NumPy), and otherwise as classify if no label changes within a
    sequence. A file for labelling with constant labels is therefore misread: give the
    task. Without `classes` the file's declared classes are taken, or else all labels,
    whole numbers by value and text by alphabet.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {TASKS}")
    if classes is not None and (not classes or len(set(classes)) != len(classes)):
        raise ValueError("classes must be one or more different names")
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(FORMATS)
        reason = f"unknown format {path.suffix!r}; known are {known}"
        raise ReadError(path, None, reason)
    return reader(path, task=task, classes=classes)
