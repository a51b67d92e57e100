"""Read texts from files and DataFrames, to train or to predict.

a table, or a DataFrame    columns text and label     a class for each text (classify)
.jsonl                     {"text": ..., "label": ...}
                           {"tokens": [...], "labels": [...]}   for each token (label)
                           {"text": ..., "spans": [{"label": ..., "start": 0, "end": 4}]}
.conll, .conllu            see `conll`
.txt                       a text a line, to predict

Each text is a sequence. Columns of ids (or the key `id`), groups and parts are optional.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from model.bundle import spans
from model.bundle import vocabulary as vocabularies
from model.bundle.vocabulary import Kind
from model.datasets.dataset import UNASSIGNED, Dataset, Task
from model.datasets.readers import csv_rows, dataframe, files, json_lines, long_rows
from model.datasets.readers.files import ReadError, Rows
from model.datasets.readers.sequences import Empty, Labels, Sequences, to_text
from model.datasets.readers.table_layout import (
    OPTIONS,
    SPLIT,
    Columns,
    Expected,
    check_choices,
    find,
    missing,
    refuse,
)
from model.datasets.text import conll

JSON_LINES = (".jsonl", ".ndjson")
CONLL = (".conll", ".conllu")  # always text; other formats need --text
SUFFIXES = (".csv", ".tsv", *JSON_LINES, *CONLL)
LINES = ".txt"  # a text a line, to predict
BY_TOKEN = ("spans", "labels")  # keys of the labels of tokens


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


@dataclass(frozen=True, slots=True, eq=False)
class TextTable:
    """The texts of a file or a DataFrame.

    Attributes:
        sequences: whose only feature is a number in `strings` for each token.
        strings: all tokens.
    """

    sequences: Sequences
    strings: tuple[str, ...]

    def dataset(self, task: Task | None = None) -> Dataset:
        """Return a data set whose tokens are numbers in `Dataset.strings`."""
        return replace(self.sequences.dataset(task), strings=self.strings)


def kind_of(source: object, options: TextOptions) -> Literal["texts", "tokens"] | None:
    """Return whether a source holds texts, or tokens that others have cut; None for
    neither. `options` says so, or the file does.

    Raises:
        ReadError: the first line of a JSON Lines file can't be read.
    """
    named: Literal["texts"] | None = None if options.text is None else "texts"
    if not isinstance(source, (str, os.PathLike)):
        return named
    path = Path(source)
    if path.suffix.lower() in CONLL:
        return "tokens"
    if path.suffix.lower() not in JSON_LINES:
        return named
    _, first = next(json_lines.numbered_records(path), (0, {}))
    if options.text not in first and "tokens" in first:
        return None if {"frames", "records"} & {*first} else "tokens"
    if "spans" in first and isinstance(first.get("text"), str):
        return "texts"
    return named


def read(
    source: object,
    options: TextOptions,
    columns: Columns = Columns(),
    *,
    recorded: Columns = Columns(),
    strings: Sequence[str] = (),
    training: bool = True,
    skip_empty: bool = False,
) -> TextTable:
    """Read a file or a DataFrame of texts.

    Args:
        columns: the names of the special columns.
        recorded: the names that a network was trained with, for those that `columns`
            leaves open and the source has.
        strings: tokens of another table, that keep their places.
        training: true if labels are required.
        skip_empty: leave out empty texts, which `Sequences.empty` lists.

    Raises:
        ReadError: it can't be read, a column is missing, one was chosen that is not
            used, or texts are empty; names the line or the row.
    """
    recorded = replace(recorded, label=recorded.label or options.label)
    expected = Expected(columns, (options.text or "text",), None, training, recorded)
    if not isinstance(source, (str, os.PathLike)):
        with dataframe.naming_arguments():
            texts = _Texts(dataframe.NAME, options, strings, place="row")
            rows = dataframe.named_rows(source, expected)
            return texts.read(rows, expected, skip_empty)
    path = Path(source)
    suffix = path.suffix.lower()
    known = SUFFIXES if training else (*SUFFIXES, LINES)
    if suffix not in known:
        reason = f"no text in {suffix!r} files; known are {', '.join(known)}"
        raise ReadError(path, None, reason)
    if suffix in (LINES, *CONLL):
        hint = "; --column names that of the labels" if suffix in CONLL else ""
        try:
            refuse(columns, OPTIONS, f"a {suffix} file has no names of columns{hint}")
        except ValueError as error:
            raise ReadError(path, None, str(error)) from None
    if suffix in CONLL:
        rows = conll.named_rows(path, options.column)
    elif suffix in JSON_LINES:
        rows = json_lines.named_rows(path)
    elif suffix == LINES:
        rows = _lines(path, options.text or "text")
    else:
        rows = csv_rows.named_rows(path, options.text or "text")
    return _Texts(path, options, strings).read(rows, expected, skip_empty)


def sequences(
    source: object,
    options: TextOptions,
    columns: Columns = Columns(),
    recorded: Columns = Columns(),
    skip_empty: bool = False,
) -> Sequences:
    """Read texts to predict, which may have no labels; the arguments are those of `read`.

    Raises:
        ReadError: see `read`.
    """
    return read(
        *(source, options, columns),
        recorded=recorded,
        training=False,
        skip_empty=skip_empty,
    ).sequences


class _Names(NamedTuple):
    """The columns of a table, or the keys of its lines; None: there is no such one."""

    text: str
    label: str | None
    sequence: str | None
    group: str | None
    split: str | None

    @classmethod
    def of(cls, header: Sequence[str], expected: Expected) -> "_Names":
        """Find the columns.

        Raises:
            ValueError: one is missing, or was chosen and is not used; names it.
        """
        columns, (text,) = expected.columns, expected.features or ("",)
        refuse(columns, ["step"], "each text is a sequence of its own")
        by_token, words = {*BY_TOKEN} & {*header}, "tokens" in header
        check_choices(header, columns, text)
        hint = " (--text)" if expected.training else ""
        if text not in header and not words:
            raise ValueError(missing(text, header, f"text column{hint}"))

        def column(name: str, *, needed: bool = False) -> str | None:
            place = find(header, replace(expected, training=needed), name)
            return None if place == text else place

        sequence = column("sequence")
        if sequence is None and columns.sequence is None and "id" in header:
            sequence = "id" if text != "id" else None
        label = None
        if columns.label or not by_token:
            label = column("label", needed=expected.training)
        group = column("group") if expected.training else None
        taken = {text, sequence, label, group, *columns.ignore}
        split = SPLIT if SPLIT in header and SPLIT not in taken else None
        return cls(text, label, sequence, group, split)


class _Texts:
    """Collects the texts of a source."""

    def __init__(
        self,
        path: Path,
        options: TextOptions,
        strings: Sequence[str],
        place: str = "line",
    ):
        self._path, self._options, self._place = path, options, place
        self._strings = {text: number for number, text in enumerate(strings)}
        self._known: dict[str, str] = {}  # one object for each token
        self._tokens: list[list[str]] = []
        self._task: Task | None = None
        self._labels = Labels()
        self._codes: list[int] = []
        self._labelled = 0
        self._split: list[int] = []
        self._groups: list[str] = []
        self._ids: list[str] = []
        self._lines: list[int] = []
        self._numbers: list[int] = []  # of the rows, from 1
        self._empty: list[Empty] = []

    def read(self, source: Rows, expected: Expected, skip_empty: bool) -> TextTable:
        """Read a text from each row."""
        try:
            names = _Names.of(source.header, expected)
        except ValueError as error:
            raise ReadError(self._path, source.line, str(error)) from None
        integers = self._place == "row"
        for line, row in source.rows:
            try:
                self._add_row(line, row, names, expected)
            except ValueError as error:
                raise self._error(line, error) from None
            integers &= type(row.get(names.sequence or "")) is int
        if expected.columns.sequence:
            self._refuse_repeated(expected.columns.sequence)
        columns = Columns(names.sequence, names.label, group=names.group)
        if not self._tokens:
            raise ReadError(self._path, None, "holds no text")
        table = self._finish(columns, integers, expected.training)
        if table.sequences.empty and not skip_empty:
            reason = f"{table.sequences.empty_rows()}: remove them"
            raise self._error(self._empty[0].line, reason)
        return table

    def _add_row(
        self, line: int, row: Mapping[str, Any], names: _Names, expected: Expected
    ) -> None:
        text, tokens = None, row.get("tokens")
        if self._options.text in row:
            tokens = None
        if tokens is None:
            text = _cell(row, names.text) if row.get(names.text, "-") else ""
            if not isinstance(text, str):
                raise ValueError(f"{names.text!r:.80} is not text")
            tokens = vocabularies.tokenize(text, self._options.kind)
        elif self._options.kind == "characters":
            raise ValueError("holds words ('tokens'); characters are read from a text")
        elif not isinstance(tokens, list) or {*map(type, tokens)} - {str}:
            raise ValueError("'tokens' is not a list of texts")
        if not tokens:
            self._skip(line, row, names)
            return
        key = names.label or next((key for key in BY_TOKEN if key in row), "label")
        label = _cell(row, key) if expected.training else row.get(key)
        if key == "spans" and label is not None:
            label = spans.to_labels(label, tokens, text)
        self._add(line, tokens, label)
        self._split[-1] = long_rows.part(row.get(names.split or ""))
        if names.group is not None:
            self._groups.append(_name(row, names.group))
        if names.sequence is not None:
            needed = names.sequence == expected.columns.sequence
            if needed or row.get(names.sequence) not in (None, ""):
                self._ids[-1] = _name(row, names.sequence)

    def _skip(self, line: int, row: Mapping[str, Any], names: _Names) -> None:
        """Remember a row that has no text."""
        id = row.get(names.sequence or "", len(self._tokens) + len(self._empty) + 1)
        id = "" if id is None else id
        self._empty.append(Empty(len(self._tokens), to_text(id), line))

    def _add(self, line: int, tokens: list[str], label: object) -> None:
        """Add a text.

        Raises:
            ValueError: its labels are not those of its tokens.
        """
        self._lines.append(line)
        self._numbers.append(len(self._lines) + len(self._empty))
        self._ids.append("")
        self._split.append(UNASSIGNED)
        self._tokens.append([self._known.setdefault(t, t) for t in tokens])
        if label in (None, ""):
            return
        self._task = self._task or ("label" if isinstance(label, list) else "classify")
        names: list[object] = [label]
        if self._task == "label":
            if not isinstance(label, list):
                raise ValueError("one label for the text, but others have one a token")
            if len(label) != len(tokens):
                raise ValueError(f"{len(label)} labels for {len(tokens)} tokens")
            names = label
        self._codes += [self._labels.encode(to_text(name)) for name in names]
        self._labelled += 1

    def _error(self, line: int, reason: object) -> ReadError:
        place = line if self._place == "line" else f"{self._place} {line}"
        return ReadError(self._path, place, str(reason))

    def _refuse_repeated(self, column: str) -> None:
        """Refuse ids that several texts have, which a user may take for groups."""
        lines: dict[str, int] = {}
        for id, line in zip(self._ids, self._lines, strict=True):
            if (before := lines.setdefault(id, line)) != line:
                raise self._error(
                    line,
                    f"{id!r:.40} is also in {self._place} {before}, and each text is a"
                    f" sequence of its own: the ids in {column!r:.80} must differ"
                    " (--group-column keeps texts in one part)",
                )

    def _finish(self, columns: Columns, integers: bool, training: bool) -> TextTable:
        numbers = self._strings
        steps = [numbers.setdefault(t, len(numbers)) for t in chain(*self._tokens)]
        whole = self._labelled == len(self._tokens)  # or there are no labels
        places = self._lines if training else self._numbers
        values: list[Any] = self._tokens
        if self._options.kind == "characters":
            values = ["".join(tokens) for tokens in values]
        sequences = Sequences(
            path=self._path,
            # An empty id stays empty: a number in its place could be another's.
            ids=tuple(self._ids) if columns.sequence else tuple(map(str, places)),
            frames=np.array(steps, np.float32)[:, None],
            lengths=np.array([len(tokens) for tokens in self._tokens]),
            features=("string",),
            labels=self._labels.targets(self._codes) if whole else None,
            classes=self._labels.classes if whole else (),
            task=self._task if whole else None,
            split=np.array(self._split),
            groups=np.array(self._groups, object) if self._groups else None,
            columns=columns,
            integer_ids=integers,
            values=values,
            empty=tuple(self._empty),
            labelled=0 if whole else self._labelled,
            rows=np.repeat(self._lines, [*map(len, self._tokens)]),
            place=self._place,
        )
        return TextTable(sequences, tuple(numbers))


def _lines(path: Path, name: str) -> Rows:
    """Return a text a line."""
    lines = files.numbered_lines(path)
    rows = ((n, {name: text.rstrip("\r\n")}) for n, text in lines if text.strip())
    return Rows([name], None, rows)


def _cell(row: Mapping[str, Any], name: str) -> Any:
    """Return a cell that is not empty."""
    if name not in row:
        raise ValueError(missing(name, list(row), "key"))
    if row[name] is None or row[name] == "":
        raise ValueError(f"column {name!r:.80} is empty")
    return row[name]


def _name(row: Mapping[str, Any], column: str) -> str:
    """Return an id, or the name of a group."""
    value = _cell(row, column)
    try:
        return to_text(value)
    except ValueError as error:
        raise ValueError(f"column {column!r:.80}: {error}") from None
