"""Each format gives the same sequences; a bad file is refused with its place."""

import contextlib
import csv
import json
import pickle
import re
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.datasets import readers
from model.datasets.dataset import PARTS, TASKS, UNASSIGNED, Dataset, default_features
from model.datasets.readers import csv_rows, files, npz, parquet
from tests.support.parquet import understate

VOWELS = Path(readers.__file__).parents[1] / "data" / "vowels.npz"


def make(task, *, seed=0, count=12, features=3):
    """A random ragged set in which every class and every part occurs."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, count)
    lengths[0] = 2  # Two steps of two classes: a CSV must see the task.
    steps = int(lengths.sum())
    return Dataset(
        name="data",
        task=task,
        frames=rng.normal(size=(steps, features)) * 10.0 ** rng.integers(-9, 9),
        lengths=lengths,
        targets=np.arange(count if task == "classify" else steps) % 4,
        classes=("a", "b", "c d", 'e"é,'),
        features=default_features(features),
        split=np.arange(count) % 4 - 1,
    )


def labels(data, index):
    """The label of each step of a sequence."""
    codes = np.broadcast_to(data.target(index), data.lengths[index])
    return [data.classes[code] for code in codes]


def write_jsonl(path, data):
    with path.open("w", encoding="utf-8") as file:
        for index in range(len(data)):
            record = {"frames": data.sequence(index).tolist()}
            names = labels(data, index)
            record |= {"label": names[0]} if data.task == "classify" else {}
            record |= {"labels": names} if data.task == "label" else {}
            if data.split[index] != UNASSIGNED:
                record["split"] = PARTS[data.split[index]]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def long_rows(data):
    """Rows of: sequence, step, label, split, features."""
    for index in range(len(data)):
        part = "" if data.split[index] < 0 else PARTS[data.split[index]]
        rows = zip(labels(data, index), data.sequence(index).tolist(), strict=True)
        for step, (name, values) in enumerate(rows):
            yield [f"s{index}", step, name, part, *values]


HEADER = ("sequence", "step", "label", "split")


def write_csv(path, data):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*HEADER, *data.features])
        writer.writerows(long_rows(data))


def write_parquet(path, data):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(
        zip([*HEADER, *data.features], zip(*long_rows(data), strict=True), strict=True)
    )
    columns["split"] = [part or None for part in columns["split"]]
    columns["label"] = pyarrow.array(columns["label"]).dictionary_encode()
    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)


def write_npz(path, data):
    np.savez(
        path,
        x=data.frames,
        lengths=data.lengths,
        y=data.targets,
        classes=np.array(data.classes),
        split=data.split,
        extra=np.arange(3),
    )


WRITERS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "npz": write_npz,
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_round_trip(tmp_path, monkeypatch, task, suffix):
    """Every format reads back what was written, whatever the size of its blocks."""
    monkeypatch.setattr(csv_rows, "BLOCK", 4)
    monkeypatch.setattr(parquet, "BLOCK", 5)
    for seed in range(3):
        data = make(task, seed=seed)
        path = tmp_path / f"data.{suffix}"
        WRITERS[suffix](path, data)
        dataset = readers.read(path)
        for name in ("frames", "lengths", "targets", "split"):
            expected = getattr(data, name)
            np.testing.assert_array_equal(getattr(dataset, name), expected)
        assert (dataset.name, dataset.task) == ("data", task)
        assert (dataset.classes, dataset.features) == (data.classes, data.features)
        assert dataset.digest == data.digest
        assert readers.read(path, task=task).digest == data.digest


@pytest.mark.parametrize("suffix", WRITERS)
def test_classes_given(tmp_path, suffix):
    """Classes that are given set the order, and another label is refused."""
    data = make("classify")
    path = tmp_path / f"data.{suffix}"
    WRITERS[suffix](path, data)
    order = ("z", *data.classes[::-1])
    assert readers.read(path, classes=order).digest == data.map_classes(order).digest
    with pytest.raises(readers.ReadError, match="label 'b' is not among the classes"):
        readers.read(path, classes=("a", "z"))


def test_class_order(tmp_path):
    """Classes stand by value if all are whole numbers, or else by alphabet."""
    for values, classes in (
        ([10, 9, "-1"], ("-1", "9", "10")),
        ([10, 9, "x"], ("10", "9", "x")),
        ([True, False], ("false", "true")),
    ):
        path = tmp_path / "data.jsonl"
        records = [json.dumps({"frames": [1], "label": value}) for value in values]
        path.write_text("\n".join(records), encoding="utf-8")
        assert readers.read(path).classes == classes


def refused(path, content, **options):
    """The words with which a file of this content is refused, without its path."""
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(readers.ReadError) as caught:
        readers.read(path, **options)
    assert caught.value.path == path
    return str(caught.value).removeprefix(str(path))


GOOD = '{"frames": [[1, 2], [3, 4]], "label": "a"}\n'


def test_json_lines_refusals(tmp_path):
    """A bad line is named, with the reason."""
    for text, message in (
        ("", ": no sequences"),
        ("\n \n", ": no sequences"),
        ("\n{", ", line 2: not JSON"),
        (GOOD + "[1]", ", line 2: expected an object"),
        ("[" * 100_000, ", line 1: not JSON"),
        (GOOD.replace("label", "lable"), ", line 1: unknown key 'lable'"),
        (GOOD[:-2] + ', "label": "b"}', ", line 1: a key is repeated"),
        ('{"label": "a"}', ", line 1: 'frames' is missing"),
        ('{"frames": [[1]]}', ", line 1: 'label' or 'labels'"),
        (GOOD + '{"frames": [[1, 2]]}', ", line 2: 'label' is missing"),
        (
            GOOD + '{"frames": [[1, 2]], "labels": ["a"]}',
            ", line 2: 'labels' does not belong to task classify",
        ),
        (
            '{"frames": [[1], [2]], "labels": ["a"]}',
            ", line 1: 'labels' is not a list of 2",
        ),
        ('{"frames": [[1]], "label": 0.5}', ", line 1: expected text"),
        ('{"frames": [[1]], "label": null}', ", line 1: expected text"),
        ('{"frames": [[1]], "label": ""}', ", line 1: the label is empty"),
        ('{"frames": [], "label": "a"}', ", line 1: 'frames' is not"),
        ('{"frames": [[]], "label": "a"}', ", line 1: step 0 of"),
        ('{"frames": {"a": 1}, "label": "a"}', ", line 1: 'frames'"),
        (
            '{"frames": [[1, 2], [3]], "label": "a"}',
            ", line 1: step 1 has 1 features, step 0 has 2",
        ),
        ('{"frames": [1, [2]], "label": "a"}', ", line 1: 'frames' mixes"),
        ('{"frames": [[1], 2], "label": "a"}', ", line 1: step 1 of"),
        (
            GOOD + '\n{"frames": [[1]], "label": "a"}',
            ", line 3: 1 features; the file began with 2",
        ),
        ('{"frames": [["1"]], "label": "a"}', ", line 1: '1' in 'fr"),
        ('{"frames": [[1, true]], "label": "a"}', ", line 1: True in"),
        ('{"frames": [[[1]]], "label": "a"}', ", line 1: [1] in"),
        ('{"frames": [[NaN]], "label": "a"}', ", line 1: NaN is not"),
        ('{"frames": [[1e39]], "label": "a"}', ", line 1: 'frames' holds"),
        (
            f'{{"frames": [[1{"0" * 400}]], "label": "a"}}',
            ", line 1: 'frames' holds a number too large",
        ),
        (f'{{"frames": [[1{"0" * 5000}]], "label": "a"}}', ", line 1: "),
        (GOOD[:-2] + ', "split": "dev"}', ", line 1: 'split' is none"),
        (GOOD[:-2] + ', "split": [1]}', ", line 1: 'split' is none"),
        (GOOD.encode() + b"\xff", ", line 2: not UTF-8"),
        (GOOD.encode("utf-16"), ", line 1: not UTF-8"),
    ):
        assert refused(tmp_path / "data.jsonl", text).startswith(message)


def test_json_lines_univariate(tmp_path):
    """A list of numbers is one feature; a byte order mark and blanks don't matter."""
    path = tmp_path / "data.ndjson"
    text = '\ufeff{"frames": [1.5, 2], "label": 1}\r\n\r\n{"frames":[[3]],"label":2}'
    path.write_text(text, encoding="utf-8", newline="")
    data = readers.read(path)
    assert data.frames.tolist() == [[1.5], [2], [3]]
    assert data.lengths.tolist() == [2, 1]


CSV = "sequence,step,label,u,v,split\na,0,x,1,2,train\na,1,x,3,4,train\n"


def test_csv_refusals(tmp_path):
    """A bad row is named with its line, and the column where there is one."""
    for text, message in (
        ("", ": no rows"),
        ("sequence,label,u\n", ": no rows"),
        ("\nsequence,label\n", ", line 2: no feature col"),
        ("label,u\n", ", line 1: column 'sequence' is"),
        ("sequence;label;u\n", ", line 1: column 'seq"),
        ("sequence,label,u,u\n", ", line 1: column 'u' is rep"),
        ("sequence,label,u,\n", ", line 1: column 4 has no"),
        (CSV + "b,0,x,1,2\n", ", line 4: 5 columns; the"),
        (CSV + "b,0,x,1,2,test,3\n", ", line 4: 7 columns"),
        (CSV + ",0,x,1,2,test\n", ", line 4: column 'seq"),
        (CSV + "b,0,,1,2,test\n", ", line 4: column 'label'"),
        (CSV + "b,0,x,1,,test\n", ", line 4: column 'v' is empty"),
        (CSV + "b,0,x,1,abc,test\n", ", line 4: column 'v' is 'abc', n"),
        (CSV + "b,0,x,1_0,2,test\n", ", line 4: column 'u' is '1_0'"),
        (CSV + "\n\nb,0,x,1,nan,test\n", ", line 6: column 'v' is not a f"),
        (CSV + "b,0,x,-inf,2,test\n", ", line 4: column 'u'"),
        (CSV + "b,0,x,1e39,2,test\n", ", line 4: column 'u'"),
        (
            CSV + "b,0,x,1,2,\na,2,x,1,2,train\n",
            ", line 5: sequence 'a': the sequence appears again",
        ),
        (CSV + "a,1,x,1,2,train\n", ", line 4: sequence 'a': 'step'"),
        (CSV + "a,0.5,x,1,2,train\n", ", line 4: sequence 'a'"),
        (CSV + "b,one,x,1,2,test\n", ", line 4: column 'step' is 'o"),
        (CSV + "b,nan,x,1,2,test\n", ", line 4: column 'st"),
        (CSV + "b,0,x,1,2,dev\n", ", line 4: split 'dev' is none"),
        (CSV + "a,2,x,1,2,test\n", ", line 4: sequence 'a': 'split' ch"),
        (CSV + 'b,0,"x,1,2,t\n', ", line 4: not CSV"),
        (CSV + 'b,0,"x"y,1,2,t\n', ", line 4: not CSV"),
        ((CSV + "é").encode("latin-1"), ", line 4: not UTF-8"),
    ):
        assert refused(tmp_path / "data.csv", text).startswith(message)


def test_csv_task(tmp_path):
    """A label that changes is refused for task classify, and guessed as label."""
    path, text = tmp_path / "data.csv", CSV + "a,2,y,1,2,train\n"
    message = refused(path, text, task="classify")
    assert message.startswith(", line 4: sequence 'a': the label changes")
    assert readers.read(path).task == "label"
    path.write_text(CSV, encoding="utf-8")
    assert readers.read(path).task == "classify"
    assert readers.read(path, task="label").targets.tolist() == [0, 0]


def test_csv_steps_are_exact(tmp_path):
    """Steps that no float tells apart still increase."""
    path, start = tmp_path / "data.csv", 1_700_000_000_000_000_000
    rows = [f"a,{start + step},x,1" for step in range(3)]
    path.write_text("\n".join(["sequence, step, label, u", *rows]), encoding="utf-8")
    data = readers.read(path)
    assert (data.lengths.tolist(), data.features) == ([3], ("u",))


def test_parquet_refusals(tmp_path, monkeypatch):
    """A bad row is named by its number, from 1, over all blocks."""
    for columns, message in (
        ({"label": None}, ": column 'label' is missing"),
        ({"u": None}, ": no feature columns"),
        ({"u": [1.0, None, 3.0]}, ", row 2: column 'u' is em"),
        ({"u": [1, 2, np.inf]}, ", row 3: column 'u' is not"),
        ({"u": ["1", "2", "3"]}, ": column 'u' holds string"),
        ({"u": [True] * 3}, ": column 'u' holds bool"),
        ({"sequence": [1, 2, 1]}, ", row 3: sequence '1'"),
        ({"sequence": [1, 1, None]}, ", row 3: column 'seq"),
        ({"label": ["x", "", "x"]}, ", row 2: column 'label'"),
        ({"label": [0.5] * 3}, ", row 1: column 'label': ex"),
        (
            {"step": np.array([2, 3, 1], np.uint8)},
            ", row 3: sequence '1': 'step' does not increase",
        ),
        ({"step": [0, None, 2]}, ", row 2: column 'step'"),
        ({"split": ["dev"] * 3}, ", row 1: split 'dev'"),
        ({"split": [0, 0, 0]}, ", row 1: split 0 is none"),
    ):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet as writer

        monkeypatch.setattr(parquet, "BLOCK", 2)
        columns = {"sequence": [1, 1, 1], "label": ["x"] * 3, "u": [1, 2, 3], **columns}
        columns = {
            name: values for name, values in columns.items() if values is not None
        }
        path = tmp_path / "data.parquet"
        writer.write_table(pyarrow.table(columns), path)
        assert refused(path, path.read_bytes()).startswith(message)


def test_parquet_damaged(tmp_path):
    """A file that is cut off or something else is refused in plain words."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    write_parquet(path, make("classify"))
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:100], whole[:-20], whole[:-8] + whole[-4:]):
        assert refused(path, content).startswith(": not Parquet: ")


def test_parquet_not_utf8(tmp_path):
    """Text in another encoding is refused."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    write_parquet(path, make("classify"))
    content = path.read_bytes().replace(b"c d", b"c\xff\xff")
    assert refused(path, content) == ": holds text that is not UTF-8"


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    """Without pyarrow the message says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(tmp_path / "data.parquet", "")
    assert message.startswith(": reading Parquet needs the package pyarrow")


ARRAYS = {
    "x": np.zeros((5, 2)),
    "lengths": [2, 3],
    "y": [0, 1],
    "classes": ["a", "b"],
    "split": [0, 2],
}


def write_arrays(path, changes):
    arrays = {**ARRAYS, **changes}
    np.savez(
        path, **{name: value for name, value in arrays.items() if value is not None}
    )


def test_npz_refusals(tmp_path):
    """A bad array is named, with the reason."""
    for changes, message in (
        ({"x": None}, ": expected an array 'x' or"),
        ({"frames": np.zeros((2, 2, 2))}, ": expected an array"),
        ({"x": np.zeros(5)}, ", array 'x': expected numbers"),
        ({"x": np.zeros((5, 0))}, ", array 'x': expected"),
        ({"x": [["1", "2"]] * 5}, ", array 'x': expected"),
        ({"x": np.zeros((5, 2), complex)}, ", array 'x'"),
        ({"x": np.full((5, 2), np.nan)}, ", array 'x': not a"),
        ({"x": np.full((5, 2), 1e39)}, ", array 'x': not a"),
        ({"x": np.array([None])}, ", array 'x': not a NumPy"),
        ({"lengths": None}, ": 'x' needs an array 'lengths'"),
        ({"lengths": [2, 2]}, ", array 'lengths': does not add"),
        ({"lengths": [5, 0]}, ", array 'lengths': each"),
        ({"lengths": [2.0, 3.0]}, ", array 'lengths': ex"),
        ({"lengths": [2**62, 2**62]}, ", array 'lengths': does not"),
        ({"offsets": [1, 2, 5]}, ", array 'offsets': begins"),
        ({"offsets": [0, 3, 5]}, ", array 'offsets': contr"),
        ({"offsets": [0, 5, 5]}, ", array 'offsets': each"),
        ({"y": None}, ": array 'y' is missing"),
        ({"y": [0, 1, 0]}, ", array 'y': its shape is [3]"),
        ({"y": [[0], [1]]}, ", array 'y': its shape"),
        ({"y": [0, 2]}, ", array 'y': 2 is no index in 2"),
        ({"y": [-1, 0]}, ", array 'y': -1 is no index"),
        ({"y": [0.0, 1.0]}, ", array 'y': expected whole"),
        ({"y": ["a", "z"]}, ", array 'y': label 'z' is not"),
        ({"y": ["a", ""]}, ", array 'y': the label is empty"),
        ({"classes": [1, 2]}, ", array 'classes': exp"),
        ({"classes": ["a", "a"]}, ", array 'classes': a name"),
        ({"features": ["u"]}, ", array 'features': 1 names"),
        ({"split": [0]}, ", array 'split': expected 2"),
        ({"split": [0, 3]}, ", array 'split': expected 2"),
        ({"split": ["a", "b"]}, ", array 'split': exp"),
        (
            {"x": None, "frames": np.zeros((2, 2, 2))},
            ", array 'lengths': 'frames' are of one length",
        ),
    ):
        path = tmp_path / "data.npz"
        write_arrays(path, changes)
        assert refused(path, path.read_bytes()).startswith(message)


def test_npz_damaged(tmp_path):
    """A file with cut or flipped bytes is refused, or else read; no other error."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **ARRAYS)
    whole = path.read_bytes()
    for content in (b"", b"PK", b"text", pickle.dumps([1]), whole[:200], whole[:-9]):
        assert ": not a NumPy archive" in refused(path, content)
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert ": not a NumPy" in refused(path, (tmp_path / "x.npy").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 100):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with contextlib.suppress(readers.ReadError):
            readers.read(path)


def test_npz_ambiguous(tmp_path):
    """If every length is 1 the task must be given."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"lengths": [1] * 5, "y": [0, 1, 0, 1, 1], "split": None})
    with pytest.raises(readers.ReadError, match="array 'y': one label a sequence or"):
        readers.read(path)
    for task in TASKS:
        assert readers.read(path, task=task).task == task


def test_npz_layouts(tmp_path):
    """Offsets for lengths and frames for x give the same set."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"lengths": [2, 2], "x": np.arange(8).reshape(4, 2)})
    expected = readers.read(path).digest
    write_arrays(
        path, {"lengths": None, "offsets": [0, 2, 4], "x": np.arange(8).reshape(4, 2)}
    )
    assert readers.read(path).digest == expected
    equal = {"x": None, "lengths": None, "frames": np.arange(8).reshape(2, 2, 2)}
    write_arrays(path, {**equal, "y": np.array(["a", "b"]), "classes": None})
    assert readers.read(path).digest == expected
    write_arrays(path, {**equal, "y": [[0, 1], [1, 1]]})
    data = readers.read(path)
    assert (data.task, data.targets.tolist()) == ("label", [0, 1, 1, 1])
    assert refused(path, path.read_bytes(), task="classify").startswith(", array 'y'")


def test_npz_labels_without_classes(tmp_path):
    """Numbers without names of classes are labels, as they would be in text."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"y": [10, 9], "classes": None})
    data = readers.read(path)
    assert (data.classes, data.targets.tolist()) == (("9", "10"), [1, 0])
    write_arrays(path, {"y": [True, False], "classes": None})
    assert readers.read(path).classes == ("false", "true")


def write_ts(path, data):
    """The cases of a set, in the dress of the archive."""
    classes = " ".join(data.classes)
    lines = [
        "# from a test",
        "@problemName made",
        "@timestamps false",
        "@missing false",
        "@UNIVARIATE false",
        f"@dimensions {len(data.features)}",
        "@equalLength false",
        f"@classLabel true {classes}",
        "",
        "@DATA",
    ]
    for index in range(len(data)):
        columns = data.sequence(index).T.tolist()
        cells = [",".join(map(repr, column)) for column in columns]
        lines.append(":".join([*cells, labels(data, index)[0]]))
    path.write_text("\n".join(lines), encoding="utf-8")


def test_ts_vowels(tmp_path):
    """A data set written as .ts reads back the same, without parts."""
    data = readers.read(VOWELS)
    path = tmp_path / "vowels_TRAIN.ts"
    write_ts(path, data)
    dataset = readers.read(path)
    assert dataset.name == "vowels_TRAIN"
    assert (dataset.split == UNASSIGNED).all()
    assert dataset.features == default_features(12)
    same = replace(dataset, split=data.split, features=data.features)
    assert same.digest == data.digest


TS = "@dimensions 2\n@classLabel true a b\n@data\n1,2:3,4:a\n"


def test_ts_refusals(tmp_path):
    """A bad line of the header or a bad case is named."""
    for text, message in (
        ("", ": no line @data"),
        ("@data\n", ", line 1: no line '@classLabel"),
        ("1,2:a\n", ", line 1: expected a line that"),
        (TS.removesuffix("1,2:3,4:a\n"), ": no cases after @data"),
        ("@timeStamps TRUE\n", ", line 1: time stamps"),
        ("@targetlabel true\n", ", line 1: a target"),
        ("#\n@classLabel false\n", ", line 2: the file"),
        ("@classLabel true a a\n", ", line 1: a class"),
        ("@dimensions two\n", ", line 1: 'two' is not"),
        (TS + "\n1,2:3,4:c\n", ", line 6: class 'c' is not"),
        (TS + "1,2:3,4\n", ", line 5: class '3,4' is not"),
        (TS + "a\n", ", line 5: 0 dimensions; expected 2"),
        (TS + "1:2:3:a\n", ", line 5: 3 dimensions; expected 2"),
        (TS + "1,?:3,4:a\n", ", line 5: dimension 1 has a m"),
        (TS + "1:NaN:a\n", ", line 5: dimension 2 holds NaN"),
        (TS + "1:1e39:a\n", ", line 5: dimension 2 holds"),
        (TS + "1:x:a\n", ", line 5: dimension 2 holds text"),
        (TS + "1,:2,3:a\n", ", line 5: dimension 1 holds text"),
        (TS + "(0,1):(0,2):a\n", ", line 5: dimension 1 has t"),
        (TS + "1,2:3:a\n", ", line 5: dimension 2 has 1 values, dim"),
        ("@seriesLength 3\n" + TS, ", line 5: 2 values; @ser"),
        ("@univariate true\n" + TS[14:], ", line 4: 2 dim"),
    ):
        assert refused(tmp_path / "data.ts", text).startswith(message)


def test_ts_task(tmp_path):
    """A .ts file is for classification only."""
    assert "task label needs" in refused(tmp_path / "data.ts", TS, task="label")
    assert readers.read(tmp_path / "data.ts", task="classify").classes == ("a", "b")


@pytest.mark.parametrize("suffix", readers.FORMATS)
def test_no_file(tmp_path, suffix):
    """A path that is not there, or not a file, is refused like a bad file."""
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("folder", "gone"):
        path = tmp_path / f"{name}{suffix}"
        with pytest.raises(readers.ReadError, match=re.escape(str(path))):
            readers.read(path)


def test_unknown_format(tmp_path):
    """A suffix that no reader has is answered with those there are."""
    message = refused(tmp_path / "data.txt", "")
    assert message.startswith(": unknown format '.txt'; known are .jsonl, ")


def test_options(tmp_path):
    """A task or classes that cannot be meant are the caller's mistake."""
    with pytest.raises(ValueError, match="task is 'clasify'"):
        readers.read(tmp_path / "data.csv", task="clasify")
    with pytest.raises(ValueError, match="one or more different names"):
        readers.read(tmp_path / "data.csv", classes=("a", "a"))


class TestBombs:
    """A small file that decompresses to gigabytes is refused first."""

    @pytest.fixture(autouse=True)
    def max_bytes(self, monkeypatch):
        monkeypatch.setattr(files, "MAX_BYTES", 2_000_000)

    def decompressed(self, *_, **__):
        raise AssertionError("it was decompressed")

    def test_npz(self, tmp_path, monkeypatch):
        """Arrays of many zeros, by their headers."""
        monkeypatch.setattr(npz.npy, "read_array", self.decompressed)
        path = tmp_path / "data.npz"
        x = np.zeros((1_000_000, 1), np.uint8)
        np.savez_compressed(path, **ARRAYS | {"x": x})
        assert path.stat().st_size < 5_000
        message = refused(path, path.read_bytes())
        assert message.startswith(
            ", array 'x': the arrays up to it would take 5,000,000"
        )
        assert "at most 2,000,000; a larger set can be JSON Lines or CSV" in message

    def test_npz_all(self, tmp_path):
        """The sizes of all arrays that are read are added."""
        path = tmp_path / "data.npz"
        many = np.zeros(90_000, np.int8)
        write_arrays(path, {"other": np.zeros(10_000_000, np.int8)})
        assert len(readers.read(path)) == 2
        write_arrays(path, {"lengths": many, "offsets": many, "y": many})
        assert refused(path, path.read_bytes()).startswith(", array 'y': the arrays")

    def test_npz_header(self, tmp_path):
        """A header that declares another size is refused."""
        for shape in (
            (5, 2**40),
            (4, 2),
            (-5, 2),
            (5, 2**70),
        ):
            path = tmp_path / "data.npz"
            write_arrays(path, {"x": None})
            with (
                zipfile.ZipFile(path, "a") as archive,
                archive.open("x.npy", "w") as file,
            ):
                about = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, about)
                file.write(bytes(80))
            message = refused(path, path.read_bytes())
            assert message.startswith(", array 'x': not a NumPy archive")
            assert "and it has 80" in message

    def test_npz_long_header(self, tmp_path):
        """A header longer than NumPy allows is refused."""
        path = tmp_path / "data.npz"
        write_arrays(path, {"x": None})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            head = b"\x93NUMPY\x02\x00" + (50_000_000).to_bytes(4, "little")
            archive.writestr("x.npy", head + bytes(50_000_000))
        tracemalloc.start()
        assert ", array 'x': not a NumPy" in refused(path, path.read_bytes())
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()

    def test_parquet(self, tmp_path, monkeypatch):
        """Many equal rows, by the footer."""
        monkeypatch.setattr(parquet, "_add", self.decompressed)
        path, rows = tmp_path / "data.parquet", 200_000
        write_columns(path, sequence=["a"] * rows, label=["x"] * rows, u=[0] * rows)
        assert path.stat().st_size < 5_000
        message = refused(path, path.read_bytes())
        assert message.startswith(
            ": its 200,000 rows of 1 features would take 8,800,000"
        )

    def test_parquet_encoded(self, tmp_path, monkeypatch):
        """A few rows of very long text that compresses well."""
        monkeypatch.setattr(parquet, "_add", self.decompressed)
        path = tmp_path / "data.parquet"
        write_columns(path, sequence=["a" * 5_000_000], label=["x"], u=[0])
        message = refused(path, path.read_bytes())
        assert message.startswith(", row group 0: its encoded columns would take 20,")

    def test_parquet_footer_lies(self, tmp_path, monkeypatch):
        """A footer that declares too little is not trusted: Arrow reads the pages."""
        monkeypatch.setattr(parquet, "_add", self.decompressed)
        path = tmp_path / "data.parquet"
        write_columns(path, sequence=["a"], label=["x" * 5_000_000], u=[0])
        from pyarrow import parquet as reader

        with reader.ParquetFile(path) as file:
            column = file.metadata.row_group(0).column(1)
        understate(path, column.total_uncompressed_size)
        message = refused(path, path.read_bytes())
        assert message.startswith(", row group 0: its encoded columns would take 20,")

    @pytest.mark.slow
    @pytest.mark.parametrize("column", parquet.TEXTS)
    def test_parquet_shared_text(self, tmp_path, column):
        """A long text in many rows is in memory once."""
        path, rows = tmp_path / "data.parquet", 10_000
        columns = {"sequence": ["a"] * rows, "label": ["x"] * rows, "u": [0] * rows}
        write_columns(path, **columns | {column: ["y" * 20_000] * rows})
        tracemalloc.start()
        if column == "split":
            assert "row 1: split 'yyyy" in refused(path, path.read_bytes())
        else:
            assert readers.read(path).lengths.tolist() == [rows]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()

    def test_parquet_prefixes(self, tmp_path):
        """Texts stored as differences count with their full length."""
        path, rows = tmp_path / "data.parquet", 3_000
        names = [f"{'a' * 5_000}{row:04}" for row in range(rows)]
        encodings = {"sequence": "DELTA_BYTE_ARRAY"}
        columns = {"sequence": names, "label": ["x"] * rows, "u": [0] * rows}
        write_columns(path, use_dictionary=False, column_encoding=encodings, **columns)
        assert path.stat().st_size < 50_000
        tracemalloc.start()
        message = refused(path, path.read_bytes())
        assert message.startswith(": the text of its columns would take 2,")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()

    def test_parquet_types(self, tmp_path, monkeypatch):
        """Columns of lists and bytes, which may be of any size, are refused."""
        for column in (
            {"sequence": [["a"]]},
            {"label": [b"a"]},
            {"u": [[1.0]]},
        ):
            monkeypatch.setattr(parquet, "_add", self.decompressed)
            path = tmp_path / "data.parquet"
            write_columns(
                path, **{"sequence": ["a"], "label": ["x"], "u": [0]} | column
            )
            assert f": column {next(iter(column))!r} holds" in refused(
                path, path.read_bytes()
            )


def write_columns(path, use_dictionary=True, column_encoding=None, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(
        pyarrow.table(columns),
        path,
        compression="zstd",
        use_dictionary=use_dictionary,
        column_encoding=column_encoding,
        write_statistics=False,
    )
