"""JSON Lines, CSV and .ts files: a bad file is refused with its line."""

from dataclasses import replace
from pathlib import Path

from model.datasets import readers
from model.datasets.dataset import UNASSIGNED, default_features
from tests.model.datasets.data_files import labels_of_steps, refused

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
        ('{"label": "a"}', ", line 1: column 'sequence' is missing"),
        (GOOD + '{"label": "a"}', ", line 2: 'frames' is missing"),
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
        (
            "sequence;lable;u\n",
            ", line 1: column 'label' is missing; did you mean 'lable'?",
        ),
        ("1,2\n3,4\n", ", line 1: the first line has numbers"),
        ("sequence,label,u,u\n", ", line 1: column 'u' is rep"),
        ("sequence,label,,u\n", ", line 1: column 3 has no"),
        ("sequence label u\na x 1\n", ", line 1: a single column, 'sequence label u'"),
        (
            "Run,Class,u\n",
            ", line 1: column 'sequence' is missing; did you mean 'Run'? Then add"
            " --sequence-column=Run",
        ),
        (CSV.replace("\n", "\r"), ", line 1: a carriage return without a line feed"),
        (CSV + "b,0,x,1,2\n", ", line 4: 5 columns; the"),
        (CSV + "b,0,x,1,2,test,3\n", ", line 4: 7 columns"),
        (CSV + ",0,x,1,2,test\n", ", line 4: column 'seq"),
        (CSV + "b,0,,1,2,test\n", ", line 4: column 'label'"),
        (CSV + "b,0,x,1,,test\n", ", line 4: a number is missing"),
        (CSV + "b,0,x,1,abc,test\n", ", line 4: column 'v' is 'abc', n"),
        (CSV + "b,0,x,1_0,2,test\n", ", line 4: column 'u' is '1_0'"),
        (CSV + "\n\nb,0,x,1,nan,test\n", ", line 6: a number is missing"),
        (CSV + "b,0,x,-inf,2,test\n", ", line 4: column 'u'"),
        (CSV + "b,0,x,1e39,2,test\n", ", line 4: column 'u'"),
        (
            "sequence,label,u\na,x,1\nb,x,1\na,x,1\n",
            ", line 4: sequence 'a': the sequence appears again",
        ),
        (
            CSV + "a,1,x,1,2,train\n",
            ", line 4: sequence 'a': the same step as in line 3",
        ),
        (CSV + "a,2026-01-01,x,1,2,train\n", ", line 4: column 'step' is '2026"),
        (
            CSV.replace(",u,", ",t,").replace("1,2", "2026-01-01,2"),
            ", line 2: column 't' is '2026-01-01', not a number; order the rows by it",
        ),
        (
            CSV + "b,31.1.2026,x,1,2,test\n",
            ", line 4: column 'step' is '31.1.2026', not a number",
        ),
        (CSV + "b,one,x,1,2,test\n", ", line 4: column 'step' is 'o"),
        (CSV + "b,nan,x,1,2,test\n", ", line 4: column 'st"),
        (CSV + "b,0,x,1,2,dev\n", ", line 4: split 'dev' is none"),
        (CSV + "a,2,x,1,2,test\n", ", line 4: sequence 'a': 'split' ch"),
        (CSV + 'b,0,"x,1,2,t\n', ", line 4: not CSV"),
        (CSV + 'b,0,"x"y,1,2,t\n', ", line 4: not CSV"),
        ((CSV + "é").encode("latin-1"), ", line 4: not UTF-8"),
    ):
        assert refused(tmp_path / "data.csv", text).startswith(message)


def test_csv_hints(tmp_path):
    """Text where a number belongs is answered with how to mend it."""
    for cell, hint in (
        ("True", "write 1 for true"),
        ("2026-01-31 12:00", "order the rows by it (--step-column)"),
        ("31.1.2026 12:00", "write times as 2026-01-31 12:00:00"),
        ("12:00:01 PM", "write times as 2026-01-31 12:00:00"),
        ('"1,5"', "write a decimal point"),
        ('"1,234.5"', "nothing between thousands"),
        ("-1.5 mm", "write the number without its unit"),
        ("12%", "write the number without its unit"),
        ("good", "if it is no feature, leave it out (--ignore)"),
        ("v", "if it is the header again, remove the line"),
    ):
        message = refused(tmp_path / "data.csv", f"{CSV}b,0,x,1,{cell},test\n")
        assert message.startswith(", line 4: column 'v' is ")
        assert hint in message


def test_csv_of_other_programs(tmp_path):
    """The additions of spreadsheets and DataFrames to a table change nothing."""
    path = tmp_path / "data.csv"
    rows = [line.split(",") for line in CSV.splitlines()]
    path.write_text(CSV, encoding="utf-8")
    expected = readers.read_sequences(path, training=True)

    def join(rows, *, delimiter=",", end="\n"):
        return "".join(delimiter.join(cells) + end for cells in rows)

    for text in (
        "\ufeff" + join(rows, end="\r\n"),
        "sep=;\r\n" + join(rows, delimiter=";", end="\r\n"),
        "SEP=,\n" + CSV,
        join(rows, end="\n\n"),
        join(rows, end="\n  \n"),
        CSV + ",,,,,\n;\n".replace(";", ",,"),
        join(rows, end=",\n"),
        join(rows[:1]) + join(rows[1:], end=",,\n"),
        join(rows[:1], end=",,\n") + join(rows[1:]),
        join([f"{n}" if n else "", *cells] for n, cells in enumerate(rows)),
        join([f" {cell} " for cell in cells] for cells in rows),
        join([f'"{cell}"' for cell in cells] for cells in rows),
    ):
        path.write_text(text, encoding="utf-8", newline="")
        sequences = readers.read_sequences(path, training=True)
        assert sequences.ids == expected.ids
        assert sequences.features == expected.features
        assert sequences.dataset().digest == expected.dataset().digest


def test_csv_without_a_header(tmp_path):
    """A file of numbers alone goes by the places of its columns."""
    path = tmp_path / "data.csv"
    for text, frames in (
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("1;2\n3;4\n", [[1, 2], [3, 4]]),
        ("1,5;2,5\n3;4\n", [[1.5, 2.5], [3, 4]]),
        ("sep=;\n1,5;2,5\n", [[1.5, 2.5]]),
    ):
        path.write_text(text)
        assert readers.read_sequences(path, features="ab").frames.tolist() == frames


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


VOWELS = Path(readers.__file__).parents[1] / "data" / "vowels.npz"


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
        lines.append(":".join([*cells, labels_of_steps(data, index)[0]]))
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
