"""Data sets of records: list the categories of the columns, and encode them.

The lists are built of the part for training alone.
"""

from dataclasses import replace

import numpy as np

from model.bundle import vocabulary
from model.bundle.records import (
    AnyColumn,
    CategoryColumn,
    NumberColumn,
    RecordSchema,
    TimeColumn,
)
from model.datasets.dataset import Dataset
from model.datasets.readers.table_layout import RecordOptions


def build(data: Dataset, options: RecordOptions) -> RecordSchema:
    """List the categories of a data set's part for training."""
    strings = data.strings or ()
    train = data.part("train").frames
    fields: list[AnyColumn] = []
    for index, (name, kind) in enumerate(options.kinds.items()):
        if kind == "number":
            fields.append(NumberColumn(name=name))
            continue
        if kind == "time":
            fields.append(TimeColumn(name=name))
            continue
        counts = np.bincount(train[:, index].astype(np.int64), minlength=len(strings))
        order = sorted(
            np.flatnonzero(counts >= options.min_count).tolist(),
            key=lambda code: (-counts[code], strings[code]),
        )
        entries = [strings[code] for code in order]
        entries = [e for e in entries if 0 < len(e) <= vocabulary.MAX_ENTRY]
        entries = entries[: options.max_words]
        width = min(options.embedding, max(2, (len(entries) + 2) // 2))
        fields.append(CategoryColumn(name=name, width=width, entries=tuple(entries)))
    return RecordSchema(fields=tuple(fields)).with_examples()


def encode(data: Dataset, schema: RecordSchema) -> Dataset:
    """Return a data set of `RecordTable.dataset` with a network's ids as categories."""
    strings, frames = data.strings or (), data.frames.copy()
    for index, column in enumerate(schema.fields):
        if isinstance(column, CategoryColumn):
            places = {entry: place for place, entry in enumerate(column.entries, 1)}
            table = np.array([places.get(text, 0) for text in strings], np.float32)
            frames[:, index] = table[frames[:, index].astype(np.int64)]
    return replace(data, frames=frames, strings=None, schema=schema)
