"""Files and DataFrames of records, and the categories that are listed."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from model.bundle import vocabulary
from model.datasets import builtin
from model.datasets.encoding import build_schema
from model.datasets.readers import Columns, ReadError
from model.datasets.readers.records import read
from model.datasets.readers.table_layout import RecordOptions

OPTIONS = RecordOptions(("event", "host"), ("bytes",), "at", min_count=1)
HEADER = "visit,at,event,host,bytes,label"
ROWS = """b,2026-01-31 12:00:09,pay,h1,2.5,bad
a,2026-01-31 12:00:03,view,,1,good
a,2026-01-31 12:00:00,login,h1,0,good
b,2026-01-31 12:00:00,login,h2,7,bad
a,2026-01-31 12:00:03,pay,h2,3,good"""
COLUMNS = Columns("visit")


def write(path, rows=ROWS, header=HEADER):
    path.write_text(f"{header}\n{rows}\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "visits.csv")


def events(table):
    return [table.records(index) for index in range(len(table.sequences))]


def test_table(table):
    """Rows are in the order of their times, equal ones in that of the file. An empty
    category is a missing one."""
    result = read(table, OPTIONS, COLUMNS, training=True)
    assert result.sequences.ids == ("b", "a")
    first, second = events(result)
    assert [record["event"] for record in first] == ["login", "pay"]
    assert [record["event"] for record in second] == ["login", "view", "pay"]
    assert [record["host"] for record in second] == ["h1", "", "h2"]
    assert second[1]["at"] - second[0]["at"] == 3
    frames = result.sequences.frames[:, 3].tolist()
    assert frames == pytest.approx([0, np.log(10), 0, np.log(4), 0])
    data = result.dataset()
    assert (data.task, data.classes) == ("classify", ("bad", "good"))


def test_step_column(tmp_path):
    """A step column orders the rows in place of the times, which must rise then."""
    header, path = f"step,{HEADER}", tmp_path / "visits.csv"
    rows = "1,a,5,view,h1,0,good\n2,a,9,pay,h1,0,good"
    (records,) = events(read(write(path, rows, header), OPTIONS, COLUMNS))
    assert [record["event"] for record in records] == ["view", "pay"]
    rows = "1,a,9,view,h1,0,good\n2,a,5,pay,h1,0,good"
    with pytest.raises(ReadError, match="line 3: the time is earlier than"):
        read(write(path, rows, header), OPTIONS, COLUMNS)


def test_same_everywhere(table, tmp_path):
    """CSV, Parquet, JSON Lines of both forms, and DataFrames hold the same records."""
    expected = events(read(table, OPTIONS, COLUMNS, training=True))
    frame = pd.read_csv(table, parse_dates=["at"])
    frame.to_parquet(tmp_path / "visits.parquet")
    lines = frame.replace({np.nan: None}).astype({"at": str}).to_dict("records")
    flat, nested = tmp_path / "flat.jsonl", tmp_path / "nested.jsonl"
    flat.write_text("".join(json.dumps(line) + "\n" for line in lines))
    nested.write_text(
        "".join(
            json.dumps({"id": name, "records": records, "label": "x"}) + "\n"
            for name, records in zip("ba", expected, strict=True)
        )
    )
    for source in (
        *(tmp_path / "visits.parquet", flat, nested, frame, pl.from_pandas(frame)),
        str(table),
    ):
        columns = Columns() if source is nested else COLUMNS
        result = read(source, OPTIONS, columns, training=True)
        assert events(result) == expected, source
        assert result.sequences.ids == ("b", "a")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("b,noon,pay,h1,2.5,bad", "column 'at' must be an ISO 8601 time"),
        ("b,5,pay,h1,many,bad", "column 'bytes' is 'many', not a number"),
        ("b,5,pay,h1,,bad", "a number is missing"),
        ("b,5,pay,h1,1e39,bad", "not a finite float32"),
        ("b,5,pay,h1,1,", "column 'label' is empty"),
        ("b,5,pay", "3 columns; the header has 6"),
    ],
)
def test_refused(tmp_path, row, reason):
    """An error names the line."""
    path = write(tmp_path / "visits.csv", f"a,4,view,h1,0,good\n{row}")
    with pytest.raises(ReadError, match=f"line 3: .*{reason}"):
        read(path, OPTIONS, COLUMNS, training=True)


def test_missing_columns(table, tmp_path):
    options = RecordOptions(("evnt",), ("bytes",))
    with pytest.raises(ReadError, match="'evnt' is missing; did you mean 'event'"):
        read(table, options, COLUMNS)
    with pytest.raises(ReadError, match="repeated in --categories"):
        read(table, RecordOptions(("event",), ("event",)), COLUMNS)
    path = tmp_path / "visits.ts"
    path.touch()
    with pytest.raises(ReadError, match=r"no records in '\.ts' files"):
        read(path, OPTIONS)
    (tmp_path / "a.jsonl").write_text('{"records": [{"event": [1]}]}\n')
    with pytest.raises(ReadError, match=r"line 1: records\[0\]\.event must be text"):
        read(tmp_path / "a.jsonl", OPTIONS)


def test_listed(tmp_path):
    """Categories of the part for training are listed, the frequent ones first; rare ones
    and those of other parts are unknown."""
    rows = [
        f"v{n},{n},{event},h{n},1,{'xy'[n % 2]},{part}"
        for n, (event, part) in enumerate(
            [("login", "train")] * 3
            + [("pay", "train")] * 4
            + [("rare", "train"), ("new", "validation"), ("pay", "test")]
        )
    ]
    path = write(tmp_path / "v.csv", "\n".join(rows), f"{HEADER},split")
    options = RecordOptions(("event", "host"), ("bytes",), "at")
    data = builtin.load_source(path, columns=COLUMNS, records=options)
    event, host, *_ = data.schema.fields
    assert event.entries == ("pay", "login")
    assert host.entries == ()
    assert data.part("validation").frames[:, 0].tolist() == [0]
    assert data.part("test").frames[:, 0].tolist() == [1]
    assert data.columns[0].size == 3
    again = builtin.load_source(path, columns=COLUMNS, encoding=data.schema)
    assert again.digest == data.digest


def test_other_test_file(table, tmp_path):
    """The categories of a test file keep their names."""
    rows = "c,5,refund,h2,1,bad\nc,6,pay,h1,1,bad"
    test = write(tmp_path / "test.csv", rows)
    options = RecordOptions(("event", "host"), ("bytes",), "at", min_count=1)
    data = builtin.load_source(
        table, test=test, columns=COLUMNS, records=options, validation=0
    )
    event = data.schema.fields[0]
    codes = data.part("test").frames[:, 0].astype(int).tolist()
    assert codes == [0, 1 + event.entries.index("pay")]


def test_too_many_categories(tmp_path, monkeypatch):
    """More categories than a network may have are refused by their column."""
    monkeypatch.setattr(vocabulary, "MAX_ENTRIES", 20)
    options = RecordOptions(("user", "event"), min_count=1)
    rows = [f"{n // 2},u{n},e{n % 3},{n // 2 % 2}" for n in range(60)]
    path = write(tmp_path / "a.csv", "\n".join(rows), "sequence,user,event,label")
    with pytest.raises(ValueError, match=r"'user' has \d+ categories.* at most 20"):
        builtin.load_source(path, records=options, validation=0)


def test_same_categories(tmp_path):
    """Booleans, whole numbers with gaps, and spaces are the same categories in CSV, JSON
    and DataFrames; a text "nan" is a category everywhere."""
    rows = [(" yes ", True, 1), ("nan", False, None), ("yes", True, 2)]
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    text = "".join(f"{a},{b},{'' if c is None else c}\n" for a, b, c in rows)
    path = write(tmp_path / "a.csv", text.rstrip(), "a,b,c")
    line = tmp_path / "a.jsonl"
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    line.write_text(json.dumps({"records": records}) + "\n")
    options = RecordOptions(("a", "b", "c"))
    (expected,) = events(read(path, options))
    assert [[*record.values()] for record in expected] == [
        ["yes", "true", "1"],
        ["nan", "false", ""],
        ["yes", "true", "2"],
    ]
    for source in (line, frame, pl.DataFrame(records)):
        assert events(read(source, options)) == [expected]


def test_missing_members(tmp_path):
    """A record without a column is refused; null is a missing category, and no number."""
    path, options = tmp_path / "a.jsonl", RecordOptions(("event",), ("bytes",))
    for line, reason in (
        (
            {"records": [{"event": "a", "bytes": 1}, {"bytes": 1}]},
            r"records\[1\].event is",
        ),
        ({"records": [{"event": None, "bytes": None}]}, r"records\[0\].bytes is null"),
        ({"event": "a", "byte": 1}, "'bytes' is missing"),
    ):
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(ReadError, match=reason):
            read(path, options)
    path.write_text('{"event": "a", "bytes": 1}\n{"bytes": 1}\n')
    with pytest.raises(ReadError, match="line 2: column 'event' is missing"):
        read(path, options)


def test_header(tmp_path):
    """A repeated column is refused; numbers may have a decimal comma."""
    options = RecordOptions(("event",), ("bytes",))
    path = write(tmp_path / "a.csv", "view;1,5;2", "event;bytes;bytes")
    with pytest.raises(ReadError, match="'bytes' is repeated"):
        read(path, options)
    path = write(path, "view;1,5", "event;bytes")
    ((record,),) = events(read(path, options))
    assert record["bytes"] == 1.5


def test_far_future(tmp_path):
    """Any time that can be written is read, and can be sent to a service."""
    path = write(
        tmp_path / "a.csv", "view,1,2026-01-31\npay,1,9999-12-31", "event,b,at"
    )
    options = RecordOptions(("event",), ("b",), "at")
    data = read(path, options)
    schema = build_schema(_labelled(data), options)
    frames, _ = schema.encode(data.records(0))
    assert frames[1, 2] == data.sequences.frames[1, 2]


def _labelled(data):
    sequences = replace(
        data.sequences,
        labels=np.zeros(2, int),
        classes=("x",),
        split=np.zeros(1, np.int8),
    )
    return replace(data, sequences=sequences).dataset("classify")
