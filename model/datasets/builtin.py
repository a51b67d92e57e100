"""Load a data set by its name (built-in) or its path (a user's file)."""

import difflib
import gzip
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Kind, Vocabulary
from model.datasets import readers, splits
from model.datasets import text as texts
from model.datasets.dataset import (
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Dataset,
    Task,
    concatenate,
)
from model.datasets.encoding import build_schema, build_vocabulary, encode
from model.datasets.readers import Columns
from model.datasets.readers import records as record_reader
from model.datasets.readers.table_layout import RecordOptions
from model.datasets.text import TextOptions

DATA = Path(__file__).with_name("data")  # Origins and licences: data/SOURCES.md.
SEED = 0  # Everyone gets the same parts of a built-in set.


class SourceError(ValueError):
    """A name that is neither a built-in set nor a file."""


@dataclass(frozen=True, slots=True)
class BuiltinDataset:
    """A data set that comes with the package."""

    name: str
    title: str
    description: str
    task: Task
    source: str
    licence: str
    loader: Callable[[], Dataset]
    kind: Kind = "tokens"  # of a set of text: what a network reads


def load(name: str) -> Dataset:
    """Load a built-in set; all its sequences have a part."""
    if name not in BUILTIN:
        raise SourceError(_unknown(name))
    return replace(BUILTIN[name].loader(), name=name)


def load_source(
    source: object,
    *,
    task: Task | None = None,
    test: object = None,
    validation: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    columns: Columns = Columns(),
    features: Sequence[str] | None = None,
    recorded: Columns = Columns(),
    text: TextOptions = TextOptions(),
    records: RecordOptions = RecordOptions(),
    encoding: Vocabulary | RecordSchema | None = None,
) -> Dataset:
    """Load a built-in set, or a user's file or DataFrame, and assign all parts.

    A built-in name wins over a file of that name (write ./digits for the file). Its
    parts are fixed: fractions and `seed` are for others. `test` is another file or
    DataFrame, the test part; `source` then gives training and validation only.
    `columns` names the special columns of both, `features` those that a network takes,
    and `recorded` the special columns that it was trained with. `text` says how text is
    read, and `records` which columns are read as records; `encoding` is that of a network,
    in place of one of the part for training.
    """
    if isinstance(source, str) and source in BUILTIN:
        if test is not None:
            raise ValueError(f"{source} has a test part of its own")
        if task not in (None, BUILTIN[source].task):
            raise ValueError(f"{source} is for task {BUILTIN[source].task}, not {task}")
        data = load(source)
        if data.strings is None:
            return data
        text = replace(text, kind=BUILTIN[source].kind)
        return encode(data, encoding or build_vocabulary(data, text))
    if isinstance(source, (str, os.PathLike)) and not Path(source).exists():
        raise SourceError(_unknown(str(source)))
    options: TextOptions | RecordOptions | None = None
    if isinstance(encoding, RecordSchema):
        options = RecordOptions.of(encoding.kinds)
    elif isinstance(encoding, Vocabulary) or texts.kind_of(source, text):
        options = text
    elif records.kinds:
        options = records
    read = partial(_read, columns=columns, recorded=recorded, options=options)
    data = read(source, task, features)
    if test is not None:
        known = data.strings or ()
        held_out = read(test, data.task, data.features, strings=known)
        data = _with_test(data, held_out, _title(source), _title(test))
        data = replace(data, strings=held_out.strings)
    data = splits.assign_parts(
        data, validation=validation, test=test_fraction, seed=seed
    )
    if isinstance(options, TextOptions):
        return encode(data, encoding or build_vocabulary(data, options))
    if isinstance(options, RecordOptions):
        return encode(data, encoding or build_schema(data, options))
    return data


def _read(
    source: object,
    task: Task | None,
    features: Sequence[str] | None,
    *,
    columns: Columns,
    recorded: Columns,
    options: TextOptions | RecordOptions | None,
    strings: Sequence[str] = (),
) -> Dataset:
    """Read a file or a DataFrame.

    Args:
        options: how text or records are read; None for numbers.
        strings: those of another source, that keep their places.
    """
    if isinstance(options, TextOptions):
        return texts.read(
            source, options, columns, recorded=recorded, strings=strings
        ).dataset(task)
    if isinstance(options, RecordOptions):
        table = record_reader.read(
            source,
            options,
            columns,
            task=task,
            training=True,
            recorded=recorded,
            strings=strings,
        )
        return table.dataset(task)
    if isinstance(source, (str, os.PathLike)):
        sequences = readers.read_sequences(
            os.fspath(source),
            columns,
            features,
            task=task,
            training=True,
            recorded=recorded,
        )
    else:
        sequences = readers.from_dataframe(
            source, columns, features, training=True, recorded=recorded
        )
    return sequences.dataset(task)


def _title(source: object) -> str:
    """Return the name of a file or a DataFrame in messages."""
    return str(source) if isinstance(source, (str, os.PathLike)) else "DataFrame"


def _with_test(data: Dataset, held_out: Dataset, source: str, test: str) -> Dataset:
    if (data.split == TEST).any():
        raise ValueError(f"{source} names a test part, and {test} would be another")
    if not np.isin(held_out.split, (TEST, UNASSIGNED)).all():
        raise ValueError(f"{test} is for testing but names parts for training")
    held_out = replace(held_out, split=np.full(len(held_out), TEST))
    try:
        return concatenate(data, held_out, data.name)
    except ValueError as error:
        raise ValueError(f"{source} and {test}: {error}") from None


def _unknown(source: str) -> str:
    known = ", ".join(BUILTIN)
    message = f"{source!r} is neither a file nor a built-in set ({known})"
    near = difflib.get_close_matches(source, BUILTIN, n=1)
    return f"{message}; did you mean {near[0]!r}?" if near else message


def _digits() -> Dataset:
    """Each row of pixels is a step. Of each class 200 are for testing, 100 for validation."""
    data = readers.read(DATA / "digits.npz", task="classify")
    rng = np.random.default_rng(SEED)
    split = np.full(len(data), TRAIN)
    for code in range(len(data.classes)):
        rows = rng.permutation(np.flatnonzero(data.targets == code))
        split[rows[:200]] = TEST
        split[rows[200:300]] = VALIDATION
    return replace(data, frames=data.frames / 255, split=split)


def _letters() -> Dataset:
    """Fold 0 is the test part, as published. Its words occur in other folds too."""
    data, arrays = _letters_file()
    split = np.where(arrays["fold"] == 0, TEST, TRAIN)
    with np.load(DATA / "validation.npz", allow_pickle=False) as archive:
        split[archive["letters"]] = VALIDATION
    return replace(data, split=split)


def letters_unseen(test_group: int = 0) -> Dataset:
    """Words of one group (0 to 4) are the test part, a tenth of the other words validation.

    Validation words don't occur in training either. Otherwise early stopping and
    calibration would be tuned to memorised words, unlike the test.
    """
    data, arrays = _letters_file()
    group, words = arrays["word_group"], arrays["words"]
    others = np.unique(words[group != test_group])
    held_out = np.random.default_rng(SEED).choice(others, len(others) // 10, False)
    split = np.where(np.isin(words, held_out), VALIDATION, TRAIN)
    return replace(data, split=np.where(group == test_group, TEST, split))


def _letters_file() -> tuple[Dataset, dict[str, np.ndarray]]:
    path = DATA / "letters.npz"
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("fold", "word_group", "words")}
    return readers.read(path, task="label"), arrays


def _vowels() -> Dataset:
    """The official parts. No part is for validation: a training cross-validates."""
    return readers.read(DATA / "vowels.npz", task="classify")


def _tags() -> Dataset:
    """Sentences of the Brown corpus; whole documents are for validation or for testing."""
    with np.load(DATA / "tags.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Dataset(
        name="tags",
        task="label",
        frames=arrays["x"].astype(np.float32)[:, None],
        lengths=arrays["lengths"],
        targets=arrays["y"],
        classes=tuple(arrays["classes"].tolist()),
        features=("string",),
        split=arrays["split"],
        strings=tuple(arrays["strings"].tobytes().decode().split("\n")),
    )


def _intents() -> Dataset:
    """Sentences by characters. No template, and no document, is in two parts."""
    return _json_lines(
        "intents", TextOptions(text="text", label="label", kind="characters")
    )


def _addresses() -> Dataset:
    """Addresses by words, with BIO labels. No address is in two parts."""
    return _json_lines("addresses", TextOptions())


def _json_lines(name: str, options: TextOptions) -> Dataset:
    """Read a compressed file of JSON Lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.jsonl"
        path.write_bytes(gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()))
        return texts.read(path, options).dataset()


BUILTIN = {
    entry.name: entry
    for entry in (
        BuiltinDataset(
            name="digits",
            title="Handwritten digits by rows",
            description="10,000 digits of MNIST, each 28 steps (rows) of 28 pixels.",
            task="classify",
            source="MNIST (LeCun, Cortes, Burges)",
            licence="MIT (the package that they come from)",
            loader=_digits,
        ),
        BuiltinDataset(
            name="letters",
            title="Handwritten words by letters",
            description="6,877 words, each 3 to 14 steps (letters) of 16 x 8 pixels.",
            task="label",
            source="OCR data set (Kassel; Taskar, Guestrin, Koller)",
            licence="none stated; the package that they come from is BSD-2-Clause",
            loader=_letters,
        ),
        BuiltinDataset(
            name="letters-unseen",
            title="Handwritten words, tested on unseen words",
            description="The same words; those of the test part occur nowhere else.",
            task="label",
            source="OCR data set (Kassel; Taskar, Guestrin, Koller)",
            licence="none stated; the package that they come from is BSD-2-Clause",
            loader=letters_unseen,
        ),
        BuiltinDataset(
            name="intents",
            title="Commands to a home",
            description="29,593 English sentences, each 2 to 122 steps (characters).",
            task="classify",
            source="templates of Home Assistant, and the Brown corpus",
            licence="Apache-2.0; redistribution permitted",
            loader=_intents,
            kind="characters",
        ),
        BuiltinDataset(
            name="addresses",
            title="US addresses",
            description="1,470 addresses, each 1 to 22 steps (words), with BIO labels.",
            task="label",
            source="training data of usaddress 0.5.16 (DataMade)",
            licence="MIT",
            loader=_addresses,
        ),
        BuiltinDataset(
            name="tags",
            title="Parts of speech",
            description="57,340 English sentences, each 1 to 180 steps (words).",
            task="label",
            source="Brown corpus (Francis, Kucera), 14 tags",
            licence="redistribution permitted",
            loader=_tags,
        ),
        BuiltinDataset(
            name="vowels",
            title="Speakers of Japanese vowels",
            description="640 utterances by 9 speakers, each 7 to 29 steps of 12 cepstra.",
            task="classify",
            source="Japanese Vowels, UCI (Kudo, Toyama, Shimbo)",
            licence="CC BY 4.0",
            loader=_vowels,
        ),
    )
}
