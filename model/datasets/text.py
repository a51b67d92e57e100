"""Data sets of text: read files of texts or tokens, build the vocabulary, encode the tokens.

a table                    {"text": ..., "label": ...}   a class for each text (classify)
.jsonl                     {"tokens": [...], "labels": [...]}   for each token (label)
                           {"text": ..., "spans": [{"label": ..., "start": 0, "end": 4}]}
.conll, .conllu            a token a line with its columns, sentences between empty lines

The vocabulary is built of the part for training alone.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import spans
from model.bundle import vocabulary as vocabularies
from model.bundle.vocabulary import Column, Kind, Vocabulary
from model.datasets.dataset import (
    PARTS,
    TEST,
    UNASSIGNED,
    Dataset,
    Task,
    join_names,
)
from model.datasets.readers import csv_rows, files
from model.datasets.readers.files import ReadError
from model.datasets.readers.sequences import Labels, Sequences, to_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".conll", ".conllu")
LINES = ".txt"  # a text a line, to predict
CONLL = (".conll", ".conllu")  # text in any case; of others `--text` says so
UPOS, FORM = 4, 2  # columns of CoNLL-U files, from 1
NAMED = {"form": 2, "lemma": 3, "upos": 4, "xpos": 5, "feats": 6, "deprel": 8}
FIELD_BYTES = 2**27  # of a text in a table
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


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How text is read and encoded; the settings of `config.DataConfig`."""

    text: str | None = None
    label: str | None = None
    column: str | None = None
    kind: Kind = "tokens"
    min_count: int = 2
    max_words: int = 20_000
    buckets: int = 4096
    embedding: int = 32

    @classmethod
    def recorded(cls, settings: Mapping[str, Any], kind: Kind) -> "TextOptions":
        """Return how text was read in a training with these settings, by section."""
        data = settings.get("data", {})
        label, column = data.get("label_column"), data.get("column")
        return cls(text=data.get("text"), label=label, column=column, kind=kind)


@dataclass(slots=True)
class Texts:
    """The tokens and labels of a file, and where they stand."""

    path: Path
    task: Task
    tokens: list[list[str]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)  # a label, or one for each token
    parts: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(
        self, tokens: list[str], label: Any, part: int, line: int, id: object = None
    ) -> None:
        """Add a text; one without a token is refused."""
        if not tokens:
            raise ReadError(self.path, line, "the text is empty")
        if self.task == "label" and label is not None and len(label) != len(tokens):
            reason = f"{len(label)} labels for {len(tokens)} tokens"
            raise ReadError(self.path, line, reason)
        self.tokens.append(tokens)
        self.labels.append(label)
        self.parts.append(part)
        self.lines.append(line)
        self.ids.append(str(len(self.lines) if id in (None, "") else id))


def is_text(source: object, options: TextOptions) -> bool:
    """Return whether a source is read as text."""
    if options.text is not None:
        return True
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in CONLL


def read(path: Path, options: TextOptions, *, training: bool = True) -> Texts:
    """Read a file of texts.

    Args:
        training: true if labels are required.

    Raises:
        ReadError: the file can't be read, or a column is missing; names the line.
    """
    suffix = path.suffix.lower()
    known = SUFFIXES if training else (*SUFFIXES, LINES)
    if suffix not in known:
        reason = f"no text in {suffix!r} files; known are {', '.join(known)}"
        raise ReadError(path, None, reason)
    try:
        if suffix == LINES:
            return _plain(path, options)
        if suffix in CONLL:
            return _conll(path, options)
        return _records(path, options, training)
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(path, None, str(error)) from None


def sequences(path: Path, options: TextOptions) -> Sequences:
    """Read a file of texts to predict; labels may be missing.

    Raises:
        ReadError: see `read`.
    """
    texts = read(path, options, training=False)
    labels, codes = Labels(), []
    if None not in texts.labels:
        names = texts.labels if texts.task == "classify" else chain(*texts.labels)
        codes = [labels.encode(to_text(name)) for name in names]
    lengths = [len(row) for row in texts.tokens]
    letters = options.kind == "characters"
    return Sequences(
        path=path,
        ids=tuple(texts.ids),
        frames=np.zeros((sum(lengths), 1), np.float32),
        lengths=np.array(lengths),
        features=("text",),
        labels=labels.targets(codes) if codes else None,
        classes=labels.classes if codes else (),
        task=texts.task if codes else None,
        values=["".join(row) for row in texts.tokens] if letters else texts.tokens,
    )


def dataset(texts: Texts, classes: Sequence[str] | None = None) -> Dataset:
    """Return a data set whose only feature numbers the strings of `Dataset.strings`."""
    numbers: dict[str, int] = {}
    steps = [numbers.setdefault(t, len(numbers)) for row in texts.tokens for t in row]
    labels = Labels(classes)
    codes: list[int] = []
    for label, line in zip(texts.labels, texts.lines, strict=True):
        try:
            names = label if texts.task == "label" else [label]
            codes += [labels.encode(to_text(name)) for name in names]
        except ValueError as error:
            raise ReadError(texts.path, line, str(error)) from None
    return Dataset(
        name=texts.path.stem,
        task=texts.task,
        frames=np.array(steps, np.float32)[:, None],
        lengths=np.array([len(row) for row in texts.tokens]),
        targets=labels.targets(codes),
        classes=labels.classes,
        features=("string",),
        split=np.array(texts.parts, np.int8),
        ids=np.array(texts.lines),
        strings=tuple(numbers),
    )


def join(texts: Texts, test: Texts) -> Texts:
    """Return the texts of both; those of `test` are the test part."""
    if texts.task != test.task:
        raise ValueError(f"tasks differ: {texts.task} and {test.task}")
    if TEST in texts.parts:
        raise ValueError(
            f"{texts.path} names a test part, and {test.path} would be another"
        )
    return Texts(
        texts.path,
        texts.task,
        texts.tokens + test.tokens,
        texts.labels + test.labels,
        texts.parts + [TEST] * len(test.parts),
        texts.lines + test.lines,
    )


def build(data: Dataset, options: TextOptions) -> Vocabulary:
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


def encode(data: Dataset, vocabulary: Vocabulary) -> Dataset:
    """Return a data set of `dataset` with the ids of a vocabulary as its features."""
    assert data.strings is not None
    words = data.frames[:, 0].astype(np.int64)
    table = vocabulary.encode(data.strings)
    return replace(
        data,
        frames=table[words],
        features=vocabulary.names,
        vocabulary=vocabulary,
        words_of=words,
    )


def _plain(path: Path, options: TextOptions) -> Texts:
    """Read a text a line."""
    texts = Texts(path, "classify")
    for line, text in files.numbered_lines(path):
        if text.strip():
            tokens = vocabularies.tokenize(text.rstrip("\r\n"), options.kind)
            texts.add(tokens, None, UNASSIGNED, line)
    if not texts.tokens:
        raise ReadError(path, None, "holds no text")
    return texts


def _records(path: Path, options: TextOptions, training: bool) -> Texts:
    """Read a table or JSON Lines. The task is that of the first record."""
    column, label = options.text or "text", options.label or "label"
    texts: Texts | None = None
    for line, record in _lines(path):
        by_token = "tokens" in record
        if texts is None:
            by_step = {"labels", "spans"} & {*record}
            texts = Texts(path, "label" if by_step else "classify")
        name = "labels" if texts.task == "label" else label
        if texts.task == "label" and "spans" in record:
            name = "spans"
        keys = ("tokens" if by_token else column, *([name] if training else ()))
        for key in keys:
            if record.get(key) in (None, ""):
                there = join_names(record)
                raise ReadError(path, line, f"no column {key!r}; there are {there}")
        tokens = record["tokens"] if by_token else None
        if tokens is None:
            text = record[column]
            if not isinstance(text, str):
                raise ReadError(path, line, f"{column!r} is not text")
            tokens = vocabularies.tokenize(text, options.kind)
        if not (isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)):
            raise ReadError(path, line, "tokens are a list of texts")
        label_of = record.get(name)
        if name == "spans":
            try:
                text = None if by_token else record[column]
                label_of = spans.to_labels(label_of, tokens, text)
            except ValueError as error:
                raise ReadError(path, line, str(error)) from None
        label_of = None if label_of == "" else label_of
        part = _part(path, line, record.get("split"))
        texts.add(tokens, label_of, part, line, record.get("id"))
    if texts is None:
        raise ReadError(path, None, "holds no text")
    return texts


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() in (".csv", ".tsv"):
        csv.field_size_limit(FIELD_BYTES)
        table = csv_rows.Table.open(path)
        for line, cells in table.rows:
            yield line, dict(zip(table.header, cells, strict=False))
        return
    for line, content in files.numbered_lines(path):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            raise ReadError(path, line, f"no JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise ReadError(path, line, "each line is an object")
        yield line, record


def _part(path: Path, line: int, name: object) -> int:
    if name in (None, ""):
        return UNASSIGNED
    if name not in PARTS:
        raise ReadError(path, line, f"split is one of {', '.join(PARTS)}")
    return PARTS.index(str(name))


def _conll(path: Path, options: TextOptions) -> Texts:
    """Read a token a line: in CoNLL-U the columns are fixed, else the first is the token
    and `column`, or the last, the label."""
    universal = path.suffix.lower() == ".conllu"
    texts = Texts(path, "label")
    tokens: list[str] = []
    labels: list[str] = []
    first = 0

    def end() -> None:
        nonlocal tokens, labels
        if tokens:
            texts.add(tokens, labels, UNASSIGNED, first)
        tokens, labels = [], []

    place = _column(path, options.column, universal)
    with path.open(encoding="utf-8-sig") as file:
        for number, content in enumerate(file, 1):
            line = content.rstrip("\r\n")
            cells = line.split("\t") if "\t" in line or universal else line.split()
            if not line.strip() or cells[0] == "-DOCSTART-":
                end()
                continue
            if universal and (line[0] == "#" or not cells[0].isdigit()):
                continue  # comments, and words that are written as one
            if len(cells) < max(2, place or 0):
                reason = f"has {len(cells)} columns; expected {max(2, place or 0)}"
                raise ReadError(path, number, reason)
            first = first if tokens else number
            tokens.append(cells[FORM - 1 if universal else 0])
            labels.append(cells[place - 1 if place else -1])
    end()
    if not texts.tokens:
        raise ReadError(path, None, "holds no sentence")
    return texts


def _column(path: Path, name: str | None, universal: bool) -> int | None:
    """Return the number of the label's column, from 1; None for the last."""
    if name is None:
        return UPOS if universal else None
    if name.isdecimal() and 0 < int(name) < 100:
        return int(name)
    if universal and name.lower() in NAMED:
        return NAMED[name.lower()]
    known = f", or one of {', '.join(NAMED)}" if universal else ""
    raise ReadError(path, None, f"no column {name!r}: give a number from 1{known}")
