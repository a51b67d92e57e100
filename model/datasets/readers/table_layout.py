"""The columns of a table: the ones with a special meaning, and the features.

sequence  step  label  split  x0   x1
a         0     up     train  0.1  2      one row for each step

Only the features are needed to predict; to train also `sequence` and `label`. Features
are matched by their names. Columns are matched by their places only if they have no
names, or the network was trained on features without names.
"""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from model.datasets.dataset import Task, default_features, join_names

# The names of the special columns, unless others are given. None: there is no such column.
DEFAULTS = {"sequence": "sequence", "label": "label", "step": "step", "group": None}
SPECIAL = tuple(DEFAULTS)
OPTIONS = {name: f"--{name}-column" for name in SPECIAL} | {"ignore": "--ignore"}
# Names that others give to these columns: suggested where ours are missing.
USUAL = {
    "sequence": {"id", "sequenceid", "series", "seriesid", "run", "session", "sample"},
    "label": {"class", "target", "category", "activity", "state", "y"},
}
# A table to predict may lack columns of the training data, if the caller says so.
UNLESS = {
    "sequence": "the table is one sequence",
    "step": "the rows of each sequence are in order",
}
SPLIT = "split"
INDEX = re.compile(r"__index_level_\d+__")  # a pandas index without a name, in Parquet
LIKE = 0.75  # similarity of a name that is suggested for a default one
FORGIVING = str.maketrans("", "", " _-.")  # near names differ in these and in case


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a table's special columns.

    Attributes:
        sequence: column of the sequences' ids. Default: `sequence`.
        label: column of the labels. Default: `label`.
        step: column that orders the rows of a sequence. Default: `step`, if it exists.
            To predict, "" says that there is no column of ids, labels or steps.
        ignore: columns that are no features.
        group: column of the subjects, machines or documents whose sequences must not be
            divided over parts. Default: none.
    """

    sequence: str | None = None
    label: str | None = None
    step: str | None = None
    ignore: tuple[str, ...] = ()
    group: str | None = None

    def named(self) -> dict[str, str]:
        """Return the names that differ from the default, by their meaning."""
        names = {name: getattr(self, name) for name in SPECIAL}
        return {k: v for k, v in names.items() if v is not None and v != DEFAULTS[k]}


@dataclass(frozen=True, slots=True)
class Expected:
    """The sequences that a reader's caller expects in a file.

    Attributes:
        columns: the names of a table's special columns.
        recorded: other names of them, for those that `columns` leaves open and a table
            has: the names in the data that a network was trained on.
        features: the features to look for, by their names; None: every column that is
            not special.
        task: of the labels, if known.
        training: true if labels and ids of sequences are required.
    """

    columns: Columns = Columns()
    features: tuple[str, ...] | None = None
    task: Task | None = None
    training: bool = False
    recorded: Columns = Columns()


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """The columns of records; the settings of `config.DataConfig`."""

    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    time: str | None = None
    min_count: int = 2
    max_words: int = 20_000
    embedding: int = 32

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column, by its name.

        Raises:
            ValueError: a column has two kinds.
        """
        pairs = [
            *((name, "category") for name in self.categories),
            *((name, "number") for name in self.numbers),
            *((name, "time") for name in filter(None, [self.time])),
        ]
        kinds = dict(pairs)
        if len(kinds) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"column {twice!r:.80} is repeated in --categories, --numbers and --time"
            )
        return kinds

    @classmethod
    def of(cls, kinds: Mapping[str, str]) -> "RecordOptions":
        """Return the columns of a network, from the kind of each by its name."""
        names: dict[str, list[str]] = {"category": [], "number": [], "time": []}
        for name, kind in kinds.items():
            names[kind].append(name)
        time = next(iter(names["time"]), None)
        return cls(tuple(names["category"]), tuple(names["number"]), time)


@dataclass(frozen=True, slots=True)
class Layout:
    """The meaning of a table's columns; None: there is no such column."""

    sequence: str | None
    label: str | None
    step: str | None
    split: str | None
    group: str | None  # only to train
    features: tuple[str, ...]  # columns, in the order of the network's features
    names: tuple[str, ...]  # of the features
    unused: tuple[str, ...]
    doubt: str | None  # why its rows may be of other sequences, or in another order

    @property
    def columns(self) -> Columns:
        """The names of the special columns."""
        return Columns(self.sequence, self.label, self.step, group=self.group)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold text."""
        columns = (self.sequence, self.label, self.split, self.group)
        return tuple(column for column in columns if column is not None)


def assign(header: Sequence[str], expected: Expected) -> Layout:
    """Find out what each column of a table means.

    Args:
        header: the names of all columns.

    Raises:
        ValueError: a column is missing, repeated or has no name; names it, and the
            columns whose names are nearest.
    """
    check_names(header)
    columns, features = expected.columns, expected.features
    named = {*columns.ignore, *(features or ())}
    header = [c for c in header if c in named or not INDEX.fullmatch(c)]
    special = {name: find(header, expected, name) for name in SPECIAL}
    check_choices(header, columns)
    used = {*(features or ()), *special.values()}
    split = SPLIT if SPLIT in header and SPLIT not in used else None
    for name, column in special.items():
        # A feature may have the name of a special column, unless that was chosen.
        choices = (getattr(columns, name), getattr(expected.recorded, name))
        if features and column in features and column not in choices:
            special[name] = None
    group = special.pop("group")
    if group is not None and group in special.values():
        if columns.group:
            raise ValueError(f"column {group!r:.80} was given two meanings")
        group = None
    taken = {*special.values(), split, group, *columns.ignore}
    rest = [column for column in header if column not in taken]
    chosen = tuple(rest) if features is None else _match(header, rest, features)
    if not chosen:
        raise ValueError(f"no feature columns beside {join_names(header)}")
    as_features = {*chosen}  # a table may have very many columns
    unused = tuple(column for column in rest if column not in as_features)
    return Layout(
        **special,
        split=split,
        group=group if expected.training else None,
        features=chosen,
        names=chosen if features is None else features,
        unused=unused,
        doubt=_doubt(header, special, unused, expected),
    )


def check_names(header: Sequence[str]) -> None:
    """Raise ValueError if a column has no name, or the name of another one."""
    for index, column in enumerate(header):
        if not column:
            raise ValueError(f"column {index + 1} has no name")
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"column {repeated[0]!r:.80} is repeated: rename one")


def check_choices(header: Sequence[str], columns: Columns, *others: str | None) -> None:
    """Raise ValueError if a column was chosen twice, or one to ignore is missing.

    Args:
        others: columns that were chosen for something else.
    """
    names = (*(getattr(columns, name) for name in SPECIAL), *others)
    chosen = Counter(filter(None, names))
    for column, count in chosen.items():
        if count > 1 or column in columns.ignore:
            raise ValueError(f"column {column!r:.80} was given two meanings")
    for name in columns.ignore:
        if name not in header:
            raise ValueError(missing(name, header, "column to ignore"))


def refuse(columns: Columns, names: Collection[str], reason: str) -> None:
    """Raise ValueError if a special column was chosen that is not used; names its option.

    Args:
        names: the meanings of the columns that are not used.
    """
    for name in names:
        if getattr(columns, name):
            raise ValueError(f"{OPTIONS[name]} is not used: {reason}")


def special_names(expected: Expected, name: str) -> tuple[str, ...]:
    """Return the names to look for, the first one first, of a special column."""
    choice = getattr(expected.columns, name)
    recorded = getattr(expected.recorded, name)
    if choice == "" and not expected.training:
        return ()
    return (choice,) if choice else tuple(filter(None, (recorded, DEFAULTS[name])))


def find(header: Sequence[str], expected: Expected, name: str) -> str | None:
    """Return the column with a special meaning, if the table has it.

    Raises:
        ValueError: it was chosen, or training needs it, and it is missing.
    """
    choice = getattr(expected.columns, name)
    recorded = getattr(expected.recorded, name)
    for column in special_names(expected, name):
        if column in header:
            return str(column)
    if choice:
        raise ValueError(missing(choice, header, f"{name} column"))
    if expected.training and name in ("sequence", "label"):
        usual = [column for column in header if _plain(column) in USUAL[name]]
        near = next(iter(usual), None) or nearest(recorded or name, header, LIKE)
        option = OPTIONS[name]
        hint = f"found {join_names(header)}: name the column with {option}"
        hint += ", or one of texts with --text" if name == "sequence" else ""
        if near:
            hint = (
                f"did you mean {near!r:.80}? Then add {option}={shlex.quote(near):.80}"
            )
        raise ValueError(f"column {recorded or name!r:.80} is missing; {hint}")
    return None


def _doubt(
    header: Sequence[str],
    special: dict[str, str | None],
    unused: Sequence[str],
    expected: Expected,
) -> str | None:
    """Return why a column that isn't used may be that of the ids or of the steps.

    Without it the answers would be different ones, and no less certain.
    """
    if expected.training or not unused:
        return None
    for name in UNLESS:
        if special[name] is not None or getattr(expected.columns, name) is not None:
            continue
        recorded = getattr(expected.recorded, name)
        names = {_plain(name), *USUAL[name]} if name == "sequence" else set()
        near = nearest(recorded, unused) if recorded else None
        near = near or next((c for c in unused if _plain(c) in names), None)
        if not recorded and not near:
            continue
        training = f", the {name} column in training" if recorded else ""
        hint = f"did you mean {near!r:.80}?" if near else f"found {join_names(header)}."
        option = OPTIONS[name]
        return (
            f"column {recorded or name!r:.80} is missing{training}; {hint} Name it with"
            f" {option}, or say that {UNLESS[name]}: {option}=''"
        )
    return None


def _match(
    header: Sequence[str], rest: Sequence[str], features: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns of the features, in their order."""
    lost = [name for name in features if name not in header]
    if not lost:
        return tuple(features)
    nameless = tuple(features) == default_features(len(features))
    if nameless and not set(features).intersection(rest):
        if len(rest) == len(features):
            return tuple(rest)
        raise ValueError(
            f"{len(rest)} feature columns ({join_names(rest)}); the network takes"
            f" {len(features)}, which have no names: leave the others out (--ignore)"
        )
    free = [column for column in rest if column not in features] or header
    reasons = (missing(name, header, "feature", free) for name in lost[:5])
    raise ValueError("; ".join(reasons))


def missing(
    name: str, header: Sequence[str], kind: str, free: Sequence[str] | None = None
) -> str:
    """Return why a name is refused, with the nearest one that there is.

    Args:
        free: the names to choose from. Default: all of the header.
    """
    near = nearest(name, header if free is None else free)
    hint = f"did you mean {near!r:.80}?" if near else f"found {join_names(header)}"
    return f"{kind} {name!r:.80} is missing; {hint}"


def nearest(name: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like `name`, but for case and separators."""
    plain = {_plain(item): item for item in reversed(known)}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.translate(FORGIVING).lower()


def from_names(names: dict[str, str] | None) -> Columns:
    """Return the columns that a bundle was trained with, as `Columns.named` gave them."""
    names = names or {}
    sequence, label, step, group = map(names.get, SPECIAL)
    return Columns(sequence, label, step, group=group)
