"""Each option of the data is used for a kind of input, or refused by its name."""

import csv
import json

import numpy as np
import pandas
import pytest

import model
from model.cli import arguments
from model.config import DataConfig, nested
from tests.model.cli.commands import refusal

VALUES = {
    "task": "label",
    "sequence_column": "run",
    "label_column": "kind",
    "step_column": "order",
    "group_column": "site",
    "ignore": ("y",),
    "validation_fraction": 0.3,
    "test_fraction": 0.4,
    "text": "y",
    "characters": True,
    "categories": ("y",),
    "numbers": ("x",),
    "time": "at",
    "column": "2",
    "min_count": 9,
    "max_words": 1,
    "buckets": 99,
    "embedding": 9,
    "normalise": "none",
    "labels_are_classes": True,
    "encoding": "cp1252",
}
# Where a file has a column of another name.
OTHERS = {
    ("lines", "group_column"): "group",
    ("nested", "group_column"): "group",
    ("tokens", "ignore"): ("note",),
    ("spans", "text"): "text2",
}
BASES = {
    "table": {"ignore": ("event", "body")},
    "steps": {"ignore": ("event", "body"), "task": "label"},
    "text": {"text": "body"},
    "letters": {"text": "body", "characters": True},
    "events": {"categories": ("event",)},
    "log": {"categories": ("event",), "task": "label"},
    "nested": {"categories": ("event",)},
}
# + is used and changes the data, = is used, - is refused by its name, ! is refused with
# the option that it contradicts.
TABLE = """
                    table steps lines npz ts text letters tokens spans conll events log nested vowels addresses
task                +     =     -     -   -  -    -       =      =     =     +      =   -      -      =
sequence_column     +     +     -     -   -  +    +       +      +     -     +      +   -      -      -
label_column        +     +     -     -   -  +    +       +      +     -     +      +   -      -      -
step_column         +     +     -     -   -  -    -       -      -     -     +      +   -      -      -
group_column        +     +     =     +   -  +    +       +      +     -     +      +   =      -      -
ignore              +     +     +     +   -  =    =       =      =     -     =      =   =      -      -
validation_fraction +     +     +     +   +  +    +       +      +     +     +      +   +      -      -
test_fraction       +     +     +     +   +  +    +       +      +     +     +      +   +      -      -
text                +     !     -     -   -  +    +       -      +     -     !      !   !      -      -
characters          -     -     -     -   -  +    =       -      +     -     -      -   -      -      -
categories          +     +     -     -   -  -    -       -      -     -     +      +   +      -      -
numbers             +     +     -     -   -  -    -       -      -     -     +      +   +      -      -
time                +     +     -     -   -  -    -       -      -     -     +      +   +      -      -
column              -     -     -     -   -  -    -       -      -     +     -      -   -      -      -
min_count           -     -     -     -   -  +    -       +      +     +     +      +   +      -      +
max_words           -     -     -     -   -  +    +       +      +     +     +      +   +      -      +
buckets             -     -     -     -   -  +    -       +      +     +     -      -   -      -      +
embedding           -     -     -     -   -  +    +       +      +     +     =      =   =      -      +
normalise           =     =     =     =   =  -    -       -      -     -     =      =   =      =      -
labels_are_classes  =     =     =     =   =  =    =       =      =     =     =      =   =      =      =
encoding            =     =     =     -   =  =    =       =      =     =     =      =   =      -      -
"""
HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())


def write_table(path):
    """Three steps of each sequence, with columns for every option."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        header = "sequence run label kind step order site at x y event body"
        table.writerow(header.split())
        for row in range(120):
            n, step = divmod(row, 3)
            names = [n, 100 + row, n % 2, n % 4, step, 200 - row, n // 4, row]
            text = f"word{row % 9} word{row % 23} and more"
            table.writerow([*names, row % 7, row % 5, f"e{row % 11}", text])


def write_lines(path, make):
    path.write_text("".join(json.dumps(make(n)) + "\n" for n in range(40)))


def make_frames(n):
    frames = [{"x": n, "y": n % 3}, {"x": 2 * n, "y": 1}]
    return {"frames": frames, "label": "ab"[n % 2], "group": f"g{n // 4}"}


def make_records(n):
    rest = {"x": n, "y": n % 5, "at": n}
    events = [{"event": f"e{n % 11}", **rest}, {"event": f"e{n % 7}", **rest}]
    return {"records": events, "label": "ab"[n % 2], "group": f"g{n // 4}"}


def make_tokens(n):
    names = {"run": f"r{n}", "site": f"s{n // 4}", "note": "a", "kind": ["p", "q"]}
    return {"tokens": [f"w{n % 9}", "x"], "labels": ["a", "b"], **names}


def make_spans(n):
    names = {"run": f"r{n}", "site": f"s{n // 4}", "y": "a", "kind": "pq"[n % 2]}
    spans = [{"label": "P", "start": 0, "end": 2}]
    return {"text": f"w{n % 9} x", "text2": f"v{n % 9} y", "spans": spans, **names}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A file of each kind, or the name of a built-in set."""
    folder = tmp_path_factory.mktemp("options")
    paths = {kind: folder / f"{kind}.jsonl" for kind in ("lines", "tokens", "spans")}
    paths |= {"npz": folder / "a.npz", "ts": folder / "a.ts"}
    paths |= {"conll": folder / "a.conll", "nested": folder / "nested.jsonl"}
    table = folder / "table.csv"
    write_table(table)
    write_lines(paths["lines"], make_frames)
    write_lines(paths["nested"], make_records)
    write_lines(paths["tokens"], make_tokens)
    write_lines(paths["spans"], make_spans)
    np.savez(
        paths["npz"],
        x=np.arange(160.0).reshape(80, 2),
        lengths=np.full(40, 2),
        y=np.arange(40) % 2,
        features=["x", "y"],
        site=np.arange(40) // 4,
    )
    cases = "".join(f"{n},{n % 3}:{n},1:{'ab'[n % 2]}\n" for n in range(40))
    paths["ts"].write_text(f"@classLabel true a b\n@data\n{cases}")
    paths["conll"].write_text("".join(f"w{n % 9} p A\nx q B\n\n" for n in range(40)))
    names = dict.fromkeys(HEADER, table) | {
        "vowels": "vowels",
        "addresses": "addresses",
    }
    return {kind: str(path) for kind, path in (names | paths).items()}


def read(source, settings):
    """Read a source as a training does; return what can be compared."""
    config = arguments.build_config(source, None, None, None, nested(settings))
    data = arguments.load_dataset(config)
    return (data.digest, data.ids.tolist(), data.columns, data.task, data.vocabulary)


def test_complete():
    """The table has a line for each setting of the data."""
    names = {*DataConfig.model_fields} - {"source", "test"}
    assert {name for name, *_ in ROWS} == {*VALUES} == names
    assert all(len(row) == len(HEADER) + 1 for row in ROWS)


SLOW = pytest.param("addresses", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [*HEADER[:-1], SLOW])
def test_options(sources, kind):
    """Each is used, or refused with a sentence that names it."""
    source, base = sources[kind], BASES.get(kind, {})
    plain = read(source, base)
    for name, *cells in ROWS:
        cell = cells[HEADER.index(kind)]
        value = OTHERS.get((kind, name), VALUES[name])
        if isinstance(value, tuple):
            value = (*base.get(name, ()), *value)
        option = "task .*label" if name == "task" else f"--{name.replace('_', '-')}"
        if cell in "+=":
            other = read(source, base | {name: value})
            assert (other != plain) == (cell == "+"), name
            continue
        pattern = option if cell == "-" else "--categories is not used|task label"
        with pytest.raises(ValueError, match=pattern):
            read(source, base | {name: value})


@pytest.mark.parametrize("command", ["describe", "train", "search"])
def test_commands(sources, command):
    """The commands refuse an option before they train."""
    options = ("--text", "body", "--numbers", "x")
    line = refusal(command, sources["text"], *options)
    assert "--numbers is not used: " in line
    assert line.endswith("table.csv is read as text")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"text": "body", "step": "order"},
            r"step=\.\.\. is not used: the DataFrame is",
        ),
        (
            {"text": "body", "group": "sight"},
            "group column 'sight' is missing; did you",
        ),
        ({"text": "body", "by": "site"}, r"row 1: '0' is also in row 0.*group=\.\.\."),
        ({"text": "body", "label": "kin"}, "label column 'kin' is missing; did you"),
        ({"characters": True}, r"characters=\.\.\. is not used.*text=\.\.\. names"),
        ({"categories": ("event",), "buckets": 9}, r"buckets=\.\.\. is not used"),
        ({"categories": ("event",), "group": "sight"}, "group column 'sight' is miss"),
    ],
)
def test_python(sources, arguments, reason):
    """`model.train` names its arguments."""
    with pytest.raises(ValueError, match=reason):
        model.train(pandas.read_csv(sources["table"]), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("commands", ("--step-column", "kind"), "--step-column is not used"),
        ("commands", ("--column", "2"), "--column is not used"),
        ("commands", ("--group-column", "site"), "group column 'site' is missing"),
        ("names", ("--label-column", "kind"), "--label-column is not used"),
        ("names", ("--text", "body"), "--text is not used"),
        ("visits", ("--text", "body"), "--text is not used"),
    ],
)
def test_evaluate(text_bundles, name, options, reason):
    """`evaluate` uses or refuses the names of columns, by what the network reads."""
    file = text_bundles / f"{name}.{'conll' if name == 'names' else 'csv'}"
    columns = ("--text", "body", "--label-column", "kind", *options)
    columns = columns if name == "commands" else options
    bundle = text_bundles / name / "1"
    assert reason in refusal("evaluate", bundle, file, "--part", "all", *columns)
