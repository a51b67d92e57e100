"""Turn the strings of data sets into ids: list the words of texts, and the categories of
records, and encode them.

The lists are built of the part for training alone.
"""

from dataclasses import replace

import numpy as np

from model.bundle import vocabulary as vocabularies
from model.bundle.records import (
    AnyColumn,
    CategoryColumn,
    NumberColumn,
    RecordSchema,
    TimeColumn,
)
from model.bundle.vocabulary import Column, Vocabulary
from model.datasets.dataset import Dataset
from model.datasets.readers.table_layout import RecordOptions
from model.datasets.text import TextOptions

# Ids and numbers of the hashed columns of words; those of `lower` are settings.
HASHED = {
    "prefix1": (256, 8),
    "prefix3": (1024, 8),
    "suffix1": (256, 8),
    "suffix2": (1024, 8),
    "suffix3": (1024, 12),
    "suffix4": (1024, 8),
    "shape": (256, 8),
}
EXAMPLES = 100  # tokens whose ids a vocabulary states, these among them
UNLISTED = ("Ünlisted", "naïve-word's", "12,345.67", "iOS-7", "猫", "\u0301", "?!")


def build_vocabulary(data: Dataset, options: TextOptions) -> Vocabulary:
    """Build the vocabulary of a data set's part for training."""
    strings = data.strings or ()
    train = data.part("train").frames[:, 0].astype(np.int64)
    counts = np.bincount(train, minlength=len(strings))
    order = sorted(
        np.flatnonzero(counts).tolist(), key=lambda n: (-counts[n], strings[n])
    )
    least = options.min_count if options.kind == "tokens" else 1
    entries = [strings[n] for n in order if counts[n] >= least]
    entries = [entry for entry in entries if len(entry) <= vocabularies.MAX_ENTRY]
    entries = entries[: options.max_words]
    width = options.embedding
    name = "word" if options.kind == "tokens" else "character"
    columns = [Column(name=name, size=1 + len(entries), width=width)]
    if options.kind == "tokens":
        columns.append(Column(name="lower", size=options.buckets, width=width))
        columns += [
            Column(name=name, size=size, width=width)
            for name, (size, width) in HASHED.items()
        ]
    vocabulary = Vocabulary(
        kind=options.kind, columns=tuple(columns), entries=tuple(entries)
    )
    # No word of the data but those that are listed.
    count = min(EXAMPLES - len(UNLISTED), len(entries))
    places = np.linspace(0, len(entries) - 1, count).astype(int)
    examples = dict.fromkeys([*(entries[n] for n in places), *UNLISTED])
    return vocabulary.with_examples([*examples])


def build_schema(data: Dataset, options: RecordOptions) -> RecordSchema:
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
        entries = [e for e in entries if 0 < len(e) <= vocabularies.MAX_ENTRY]
        entries = entries[: options.max_words]
        if len(entries) > vocabularies.MAX_ENTRIES:
            raise ValueError(
                f"column {name!r:.80} has {len(entries):,} categories, and a network at most"
                f" {vocabularies.MAX_ENTRIES:,}: leave it out if these are ids, or keep the"
                " frequent ones (--min-count, --max-words)"
            )
        width = min(options.embedding, max(2, (len(entries) + 2) // 2))
        fields.append(CategoryColumn(name=name, width=width, entries=tuple(entries)))
    return RecordSchema(fields=tuple(fields)).with_examples()


def encode(data: Dataset, encoding: Vocabulary | RecordSchema) -> Dataset:
    """Return a data set with the ids of a network in place of its strings."""
    strings = data.strings or ()
    if isinstance(encoding, Vocabulary):
        words = data.frames[:, 0].astype(np.int64)
        frames = encoding.encode(strings)[words]
        names = encoding.names
        return replace(
            data, frames=frames, features=names, vocabulary=encoding, words_of=words
        )
    frames = data.frames.copy()
    for index, column in enumerate(encoding.fields):
        if isinstance(column, CategoryColumn):
            places = {entry: place for place, entry in enumerate(column.entries, 1)}
            table = np.array([places.get(text, 0) for text in strings], np.float32)
            frames[:, index] = table[frames[:, index].astype(np.int64)]
    return replace(data, frames=frames, strings=None, schema=encoding)
