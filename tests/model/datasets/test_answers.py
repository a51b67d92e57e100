"""The table of answers, and the files that it is written to."""

import io
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from model.datasets import answers, readers
from model.datasets import text as texts
from model.datasets.text import TextOptions

CLASSES = ("off", "label", "=cmd|' /C calc'!A0")
ROWS = np.array([[0.5, 0.25, 0.25], [0.1, 0.9, 0]], np.float32)


def table(task="classify", **options):
    probabilities = ROWS if task == "classify" else [ROWS, ROWS[1:]]
    return answers.columns(task, CLASSES, ["007", "b"], probabilities, **options)


def test_classify():
    """A row for each sequence: its id, label and probability, then each class."""
    columns = table()
    assert list(columns) == [
        *("sequence", "label", "probability", "probability_off"),
        *("probability_label", "probability_=cmd|' /C calc'!A0"),
    ]
    assert columns["sequence"] == ["007", "b"]
    assert columns["label"] == ["off", "label"]
    np.testing.assert_array_equal(columns["probability"], ROWS.max(1), strict=True)
    for code, name in enumerate(CLASSES):
        np.testing.assert_array_equal(columns[f"probability_{name}"], ROWS[:, code])


def test_label():
    """A row for each step, which are counted from 1 if they have no column."""
    columns = table("label")
    assert list(columns)[:4] == ["sequence", "step", "label", "probability"]
    assert columns["sequence"] == ["007", "007", "b"]
    assert columns["step"].tolist() == [1, 2, 1]
    assert columns["label"] == ["off", "label", "label"]
    steps = [np.array([0.5, 1.5]), np.array([7.0])]
    columns = table("label", steps=steps, id_column="run", step_column="time")
    assert list(columns)[:2] == ["run", "time"]
    assert columns["time"].tolist() == [0.5, 1.5, 7]


def test_true_labels():
    """Known labels are in the column `true_label`; an unknown one is None."""
    columns = table(labels=[["off"], None])
    assert list(columns)[:4] == ["sequence", "label", "probability", "true_label"]
    assert columns["true_label"] == ["off", None]
    columns = table("label", labels=[None, ["x"]])
    assert columns["true_label"] == [None, None, "x"]


def test_names():
    """No two columns have one name, whatever the file calls its own."""
    taken = ("label", "probability", "true_label", "probability_off", "sequence")
    for names in ((a, b) for a in (*taken, "step", None) for b in (*taken, None)):
        named = {"id_column": names[0], "step_column": names[1]}
        columns = table("label", labels=[None, None], **named)
        assert len(columns) == 5 + len(CLASSES)
        kept = [n not in taken[:-1] for n in names]
        assert (list(columns)[1] == names[1]) == (kept[1] and names[1] is not None)


def test_nothing():
    """No sequences are a table without rows."""
    for task in ("classify", "label"):
        columns = answers.columns(task, CLASSES, [], [])
        assert {len(values) for values in columns.values()} == {0}


def test_of_sequences(tmp_path):
    """Ids, steps and labels are the file's, also those of a network with other classes."""
    path = tmp_path / "a.csv"
    path.write_text("run,t,x,state\nb,2,1,on\nb,1,2,on\na,1,3,off\na,2,3,on\n")
    data = readers.read_sequences(path, readers.Columns("run", "state", "t"), ["x"])
    rows = [np.tile(row, (2, 1)) for row in ROWS]
    columns = answers.of_sequences(data, "label", CLASSES, rows)
    assert list(columns)[:5] == ["run", "t", "label", "probability", "true_label"]
    assert columns["run"] == ["b", "b", "a", "a"]
    assert columns["t"].tolist() == [1, 2, 1, 2]
    assert columns["true_label"] == ["on", "on", "off", "on"]
    columns = answers.of_sequences(data, "classify", CLASSES, list(ROWS))
    assert columns["true_label"] == ["on", None]


def test_with_empty(tmp_path):
    """A row without a text has its id alone, in its place, in every format."""
    path = tmp_path / "a.csv"
    path.write_text("id,text,label\n7,,on\n8,a,on\n9,,off\n")
    data = texts.sequences(path, TextOptions(), skip_empty=True)
    data = replace(data, integer_ids=True)
    columns = answers.of_sequences(data, "classify", CLASSES, [ROWS[0]])
    whole = answers.with_empty(columns, data)
    assert whole["id"].tolist() == [7, 8, 9]
    assert whole["true_label"] == [None, "on", None]
    assert np.isnan(whole["probability"]).tolist() == [True, False, True]
    for name in ("b.csv", "b.jsonl", "b.parquet"):
        answers.writer(tmp_path / name)(whole, False)
    lines = (tmp_path / "b.csv").read_text().splitlines()
    assert (lines[1], lines[3]) == ("7" + 6 * ",", "9" + 6 * ",")
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert set(first.values()) == {7, None}
    table = pd.read_parquet(tmp_path / "b.parquet")
    assert table["label"].isna().tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.jsonl", "a.ndjson", "a.parquet"])
@pytest.mark.parametrize("task", ["classify", "label"])
def test_round_trip(tmp_path, name, task, monkeypatch):
    """Every format has the same table, with every digit of the numbers."""
    monkeypatch.setattr(answers, "BLOCK", 2)
    columns = table(task, labels=[["off"], ["ö\n"]] if task == "classify" else None)
    rng = np.random.default_rng(0)
    columns["probability"] = rng.random(len(columns["label"]), np.float32) / 1e6
    columns["even"] = np.arange(len(columns["label"])) / 3
    path = tmp_path / name
    answers.writer(path)(columns, False)
    if path.suffix.lower() == ".csv":
        frame = pd.read_csv(path, dtype={"sequence": str})
    elif path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        frame = pd.DataFrame(map(json.loads, path.read_text("utf-8").splitlines()))
    assert list(frame) == list(columns)
    for column, values in columns.items():
        read = frame[column].to_numpy()
        if isinstance(values, list):
            assert read.tolist() == values
        else:
            np.testing.assert_array_equal(read.astype(values.dtype), values)
    assert [file.name for file in tmp_path.iterdir()] == [name]  # no draft is left


def test_times(tmp_path):
    """Times are ISO 8601, and times in Parquet; an unknown label is empty, or null."""
    times = np.array(["2026-01-01T00:00:01.5", "2026-01-02"], "datetime64[us]")
    columns = {"t": times, "true_label": ["a", None]}
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        answers.writer(tmp_path / name)(columns, False)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[1:] == ["2026-01-01T00:00:01.500000,a", "2026-01-02T00:00:00.000000,"]
    answers.writer(tmp_path / "b.csv")({"t": times[1:]}, False)
    assert (tmp_path / "b.csv").read_text() == "t\n2026-01-02T00:00:00\n"
    records = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [record["true_label"] for record in records] == ["a", None]
    for name in ("z.csv", "z.jsonl", "z.parquet"):
        answers.writer(tmp_path / name)({"t": times[1:]}, True)
    assert (tmp_path / "z.csv").read_text() == "t\n2026-01-02T00:00:00Z\n"
    assert (tmp_path / "z.jsonl").read_text() == '{"t": "2026-01-02T00:00:00Z"}\n'
    assert str(pd.read_parquet(tmp_path / "z.parquet")["t"].dtype.tz) == "UTC"
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["t"].to_numpy().astype("datetime64[us]").tolist() == times.tolist()


def test_standard_output(monkeypatch):
    """`-` is CSV on standard output."""
    output = SimpleNamespace(buffer=io.BytesIO())
    monkeypatch.setattr(sys, "stdout", output)
    answers.writer("-")({"a": ["x", "y,z"], "b": np.array([1, 2])}, False)
    assert output.buffer.getvalue() == b'a,b\nx,1\n"y,z",2\n'


def test_formulas(tmp_path):
    """CSV has no text that a spreadsheet would run; other text and numbers stay."""
    formulas = ["=A1(2)", "@SUM(1)", "+x|y", " \t-2!a", "=1\n(", "\uff1dA(1)"]
    others = ["-1", "+1.5e3", "@bob", "-A12", "a=b(c)", "", "(x)", "'=A1(2)"]
    path = tmp_path / "a.csv"
    texts = [*formulas, *others]
    answers.writer(path)({"=x(1)": texts, "y": np.full(len(texts), -1.0)}, False)
    frame = pd.read_csv(path, keep_default_na=False)
    assert list(frame) == ["'=x(1)", "y"]
    assert frame["'=x(1)"].tolist() == [*(f"'{text}" for text in formulas), *others]
    assert set(frame["y"]) == {-1}


def test_refused(tmp_path, monkeypatch):
    """It is an error, before anything is computed, if no such file can be written."""
    (tmp_path / "folder.csv").mkdir()
    cases = {
        "a.xls": "unknown format '.xls'; known are .csv, .jsonl, .ndjson, .parquet",
        "a": "unknown format ''",
        "none/a.csv": "there is no folder",
        "folder.csv": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            answers.writer(tmp_path / name)
    monkeypatch.setattr(answers, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="needs the package pyarrow"):
        answers.writer(tmp_path / "a.parquet")


def test_whole_or_not_at_all(tmp_path):
    """If writing fails the file that was there stays, and no other one."""
    path = tmp_path / "a.csv"
    path.write_text("before")
    with pytest.raises(ValueError, match="zip"):
        answers.writer(path)({"a": ["x"], "b": np.zeros(2)}, False)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions(tmp_path):
    """A file that is written again keeps its permissions."""
    path = tmp_path / "a.csv"
    path.touch(0o600)
    answers.writer(path)({"a": ["x"]}, False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "a\nx\n"


def test_links(tmp_path):
    """Through a link the file is written that it leads to."""
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "a.csv")
    answers.writer(link)({"a": ["x"]}, False)
    assert link.is_symlink()
    assert (tmp_path / "a.csv").read_text() == "a\nx\n"


def test_digits():
    """Numbers are written with the fewest digits that give the same float32."""
    values = np.array([0.1, 1e-8, 1, 1 / 3], np.float32)
    texts = answers._texts(values, "", False)
    assert texts[0] == "0.1"
    assert max(map(len, texts)) <= math.ceil(math.log10(2**24)) + 4
    np.testing.assert_array_equal(np.array(texts, np.float32), values)
