"""Turn data that a caller has into sequences: arrays, lists, DataFrames, files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from model.bundle.metadata import Metadata
from model.bundle.records import RecordError, RecordSchema
from model.bundle.vocabulary import Vocabulary, tokenize
from model.datasets import readers
from model.datasets import text as texts
from model.datasets.readers import Columns, Sequences
from model.datasets.readers import records as record_reader
from model.datasets.readers.table_layout import RecordOptions

ARRAYS = Path("sequences")  # in place of a file's name
TABLES = (*texts.SUFFIXES, texts.LINES, *readers.FORMATS)  # endings of files
SHAPE = "a sequence is an array [T, F] of T steps with F features"


def read(data: object, columns: Columns, metadata: Metadata) -> Sequences:
    """Return the sequences in `data`, with the features that a network takes.

    Args:
        data: see `Network.classify`.
        columns: the names of the special columns of a file or DataFrame.

    Raises:
        ReadError: a file or DataFrame lacks a column, or holds other values.
        ValueError: an array has another shape, or holds other values; names the place.
    """
    names = metadata.input.names
    recorded = readers.from_names(metadata.training.columns)
    if isinstance(data, (str, os.PathLike)):
        path = Path(os.fspath(data))
        return readers.read_sequences(path, columns, names, recorded=recorded)
    if readers.is_dataframe(data):
        return readers.from_dataframe(data, columns, names, recorded=recorded)
    _refuse_names(columns)
    return _from_arrays(data, metadata)


def _refuse_names(columns: Columns) -> None:
    if columns != Columns():
        raise ValueError("only a file or a DataFrame has columns to name")


def read_text(
    data: object, columns: Columns, vocabulary: Vocabulary, metadata: Metadata
) -> Sequences:
    """Return the ids of texts, or of lists of words: of a text, a list, a DataFrame, or a
    file (a `Path`).

    Raises:
        ReadError: a file or DataFrame lacks a column, or holds other values.
        ValueError: a text is empty, or may be the name of a file; names the place.
    """
    if isinstance(data, os.PathLike) or readers.is_dataframe(data):
        return _read_texts(data, columns, vocabulary, metadata)
    _refuse_names(columns)
    if isinstance(data, str):
        if os.path.isfile(data) or data.lower().endswith(TABLES):
            raise ValueError(
                f"{data!r:.80} may be a file or a text: pass Path({data!r:.80}) for the"
                f" texts in the file, or the list [{data!r:.80}] for the text"
            )
        data = [data]
    takes = "texts" if vocabulary.kind == "characters" else "texts, or lists of words"
    if not isinstance(data, (list, tuple)) or not data:
        raise ValueError(f"{metadata.name} takes a list of {takes}")
    items = []
    for index, item in enumerate(data):
        if isinstance(item, str):
            tokens = tokenize(item, vocabulary.kind)
        elif vocabulary.kind == "tokens" and all(
            isinstance(word, str) for word in item
        ):
            tokens = list(item)
        else:
            raise ValueError(f"sequence {index}: {metadata.name} takes {takes}")
        if not all(tokens) or not tokens:
            raise ValueError(f"sequence {index} has no token, or an empty one")
        items.append(vocabulary.encode(tokens))
    return _joined(items, metadata)


def _read_texts(
    source: object, columns: Columns, vocabulary: Vocabulary, metadata: Metadata
) -> Sequences:
    record = metadata.training
    options = texts.TextOptions.recorded(record.settings, vocabulary.kind)
    recorded = readers.from_names(record.columns)
    data = texts.sequences(source, options, columns, recorded)
    frames = np.concatenate([vocabulary.encode(tokens) for tokens in data.inputs])
    return replace(data, frames=frames)


def read_records(
    data: object, columns: Columns, schema: RecordSchema, metadata: Metadata
) -> Sequences:
    """Return the frames of records: a list of sequences of objects, a file or a DataFrame.

    Raises:
        ReadError: a file or DataFrame lacks a column, or holds other values.
        ValueError: a record lacks a column, or holds another value; names the place.
    """
    if isinstance(data, (str, os.PathLike)) or readers.is_dataframe(data):
        table = record_reader.read(
            data,
            RecordOptions.of(schema.kinds),
            columns,
            recorded=readers.from_names(metadata.training.columns),
        )
        items = [
            schema.encode(table.records(i))[0] for i in range(len(table.sequences))
        ]
        return replace(table.sequences, frames=np.concatenate(items))
    _refuse_names(columns)
    takes = "a list of sequences, each a list of records (objects)"
    if not isinstance(data, (list, tuple)) or not data:
        raise ValueError(f"{metadata.name} takes {takes}")
    sequences = [data] if isinstance(data[0], Mapping) else data
    frames = []
    for index, sequence in enumerate(sequences):
        place = f"sequence {index}"
        fits = isinstance(sequence, (list, tuple)) and bool(sequence)
        if not fits or not all(isinstance(record, Mapping) for record in sequence):
            raise ValueError(f"{place}: {metadata.name} takes {takes}")
        try:
            frames.append(schema.encode(sequence)[0])
        except RecordError as error:
            raise ValueError(f"{place}, {error}") from None
    return _joined(frames, metadata)


def _joined(items: list[np.ndarray], metadata: Metadata) -> Sequences:
    return Sequences(
        path=ARRAYS,
        ids=tuple(map(str, range(1, len(items) + 1))),
        frames=np.concatenate(items),
        lengths=np.array([len(frames) for frames in items], np.int32),
        features=metadata.input.names,
    )


def _from_arrays(data: object, metadata: Metadata) -> Sequences:
    items = [_frames(item, index, metadata) for index, item in enumerate(_divide(data))]
    width = metadata.input.features
    return Sequences(
        path=ARRAYS,
        ids=tuple(map(str, range(1, len(items) + 1))),
        frames=np.concatenate([np.zeros((0, width), np.float32), *items]),
        lengths=np.array([len(frames) for frames in items], np.int32),
        features=metadata.input.names,
    )


def _divide(data: object) -> Sequence[ArrayLike]:
    """Return the sequences of an array [T, F] or [N, T, F], or of a list of arrays."""
    if not isinstance(data, (list, tuple)):
        array = _array(data, "the data")
        if array.ndim not in (2, 3):
            raise ValueError(f"an array of shape {list(array.shape)}; {SHAPE}")
        return [array] if array.ndim == 2 else list(array)
    if not data or _array(data[0], "sequence 0").ndim != 1:
        return data
    return [data]


def _frames(value: ArrayLike, index: int, metadata: Metadata) -> np.ndarray:
    """Check one sequence, and return it as [T, F] float32."""
    place = f"sequence {index}"
    array, width = _array(value, place), metadata.input.features
    if array.ndim != 2 or not len(array):
        raise ValueError(f"{place} has the shape {list(array.shape)}; {SHAPE}")
    if array.shape[1] != width:
        raise ValueError(
            f"{place} has {array.shape[1]} features; {metadata.name} takes {width}"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        frames = array.astype(np.float32)
    for step, feature in np.argwhere(~np.isfinite(frames))[:1].tolist():
        number = array[step, feature]
        raise ValueError(
            f"{place}, step {step}, feature {feature} is {number}, no finite float32"
        )
    return frames


def _array(value: object, place: str) -> np.ndarray:
    if readers.is_dataframe(value):  # NumPy would take its columns by their places
        reason = "join DataFrames into one, with a column of ids (by=...)"
        raise ValueError(f"{place} is a DataFrame: {reason}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{place} has rows of different lengths; {SHAPE}") from None
    if array.dtype.kind not in "biuf" and array.size:
        kind = array.dtype if array.ndim else type(value).__name__
        raise ValueError(f"{place} holds {kind}, no numbers; {SHAPE}")
    return array
