"""Groups of sequences, such as subjects, in every format: read, shown and undivided."""

import json
from dataclasses import replace

import numpy as np
import pandas
import polars
import pytest

from model.datasets import builtin, checks, readers
from model.datasets.readers import Columns, ReadError
from tests.support.networks import make_dataset
from tests.support.tables import WRITERS

BY_SUBJECT = Columns(group="subject")
NAMES = ["ann", "bo", "ann", "cy", "bo", "ann"]


@pytest.fixture
def table():
    """Six sequences of two steps each, by three subjects."""
    steps = np.arange(12)
    return pandas.DataFrame(
        {
            "sequence": [f"s{n}" for n in steps // 2],
            "step": steps % 2,
            "subject": np.repeat(NAMES, 2),
            "label": np.repeat(list("xyxyxy"), 2),
            "u": steps * 0.5,
        }
    )


def write_archive(path, name="groups", values=NAMES):
    """An NPZ with the same sequences."""
    frames = np.arange(12).reshape(6, 2, 1) * 0.5
    arrays = {"frames": frames, "y": list("xyxyxy"), "ids": [f"s{n}" for n in range(6)]}
    np.savez(path, **arrays, **{name: np.array(values)})
    return path


def write_lines(path, key="group", names=NAMES):
    """JSON Lines with the same sequences."""
    lines = [
        {"id": f"s{n}", "frames": [n, n + 0.5], "label": "xy"[n % 2]}
        | ({} if name is None else {key: name})
        for n, name in enumerate(names)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class TestRead:
    def test_tables(self, table, tmp_path):
        """The column is read from every format, in any order of rows, and no feature."""
        for name, write in WRITERS.items():
            path = tmp_path / name
            write(table.sample(frac=1, random_state=0), path)
            data = readers.read(path, columns=BY_SUBJECT)
            groups = dict(zip(data.ids.tolist(), data.groups.tolist(), strict=True))
            assert groups == {f"s{n}": name for n, name in enumerate(NAMES)}
            assert data.features == ("u",)

    def test_dataframes(self, table):
        """It is read from DataFrames, or from a level of a pandas index."""
        indexed = table.set_index(["subject", "sequence"])
        for frame in (table, polars.from_pandas(table), indexed):
            data = readers.from_dataframe(frame, BY_SUBJECT, training=True).dataset()
            assert data.groups.tolist() == NAMES
            assert data.features == ("u",)

    def test_lines(self, tmp_path):
        """A line of JSON has the key `group`, or the one that is named."""
        lines = write_lines(tmp_path / "a.jsonl")
        assert readers.read(lines).groups.tolist() == NAMES
        lines = write_lines(tmp_path / "b.jsonl", "subject", [3, 1, 3, 2, 1, 3])
        assert readers.read(lines, columns=BY_SUBJECT).groups.tolist() == [*"313213"]

    def test_archives(self, tmp_path):
        """An archive has the array `groups`, or the one that is named."""
        path = write_archive(tmp_path / "a.npz")
        assert readers.read(path).groups.tolist() == NAMES
        path = write_archive(tmp_path / "b.npz", "subject", [3, 1, 3, 2, 1, 3])
        assert readers.read(path).groups is None
        assert readers.read(path, columns=BY_SUBJECT).groups.tolist() == [*"313213"]

    def test_without(self, table, tmp_path):
        """Without the option a table has no groups, whatever its columns are."""
        data = readers.from_dataframe(
            table.rename(columns={"subject": "group"}),
            Columns(ignore=("group",)),
            training=True,
        )
        assert data.groups is None

    def test_recorded(self, table):
        """To predict, the column of the training data is ignored, even with gaps."""
        recorded = readers.from_names({"group": "subject"})
        table.loc[3, "subject"] = None
        sequences = readers.from_dataframe(table, features=("u",), recorded=recorded)
        assert sequences.groups is None
        assert sequences.unused == ()
        del table["subject"]
        for training in (False, True):
            sequences = readers.from_dataframe(
                table, features=("u",), recorded=recorded, training=training
            )
            assert sequences.groups is None

    def test_table_refusals(self, table):
        """A missing, changing or empty column is named, with the row."""
        changed, empty = table.copy(), table.copy()
        changed.loc[3, "subject"] = "cy"
        empty.loc[3, "subject"] = ""
        for frame, group, reason in (
            (table, "subjekt", "group column 'subjekt' is missing; did you mean 'subj"),
            (table, "label", "column 'label' was given two meanings"),
            (changed, "subject", "row 3: sequence 's1': 'subject' changes within"),
            (empty, "subject", "row 3: column 'subject' is empty"),
        ):
            with pytest.raises(ReadError, match=reason):
                readers.from_dataframe(frame, Columns(group=group), training=True)

    def test_line_refusals(self, tmp_path):
        """Lines with and without groups are refused, and so are empty ones."""
        path = tmp_path / "a.jsonl"
        for names, columns, reason in (
            ([None, "ann"], Columns(), "line 2: has 'group', which the first line has"),
            (["ann", None], Columns(), "line 2: key 'group' is missing"),
            (["ann", ""], Columns(), "line 2: 'group' is empty"),
            (["ann"], Columns(group="subject"), "line 1: unknown key 'group'"),
            ([None], Columns(group="subject"), "line 1: key 'subject' is missing"),
        ):
            write_lines(path, names=names)
            with pytest.raises(ReadError, match=reason):
                readers.read(path, columns=columns)

    def test_archive_refusals(self, tmp_path):
        """An array that is missing, or has other groups than sequences, is named."""
        path = tmp_path / "a.npz"
        for values, columns, reason in (
            (NAMES, BY_SUBJECT, "array 'subject' is missing"),
            (NAMES[:5], Columns(), "array 'groups': expected 6 texts or whole numbers"),
            ([0.5] * 6, Columns(), "array 'groups': expected 6 texts or whole numbers"),
            ([*NAMES[:5], ""], Columns(), "array 'groups': sequence 5 has no group"),
        ):
            write_archive(path, values=values)
            with pytest.raises(ReadError, match=reason):
                readers.read(path, columns=columns)

    def test_ts(self, tmp_path):
        """A .ts file has none."""
        path = tmp_path / "a.ts"
        path.write_text("@classLabel true a b\n@data\n1,2:a\n")
        with pytest.raises(ReadError, match=r"--group-column is not used: a \.ts file"):
            readers.read(path, columns=BY_SUBJECT)


def test_parts(tmp_path):
    """A file's groups are in one part each, also beside a file for the test."""
    data = make_dataset(counts=(40, 10, 10))
    names = [f"g{n % 9}" for n in range(60)]
    rows = ["sequence,subject,label," + ",".join(data.features)]
    for n in range(60):
        label = data.classes[data.targets[n]]
        rows += [
            ",".join(map(str, (f"s{n}", names[n], label, *frame)))
            for frame in data.sequence(n).tolist()
        ]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows))
    for test in (None, path):
        options = {"validation": 0.15, "columns": BY_SUBJECT}
        cut = builtin.load_source(str(path), test=test, **options)
        cut = cut.take(np.arange(60))  # those of the file itself
        pairs = set(zip(cut.groups.tolist(), cut.split.tolist(), strict=True))
        assert len(pairs) == 9
        assert len(set(cut.split.tolist())) == (3 if test is None else 2)


def test_divided_groups_are_warned_of():
    """Groups that a file itself divides over parts are named."""
    data = make_dataset(counts=(24, 12, 12))
    groups = np.array([f"g{n}" for n in range(48)], object)
    assert checks.warnings(replace(data, groups=groups)) == []
    groups[[0, 40]], groups[[1, 25, 47]] = "ann", "bo"
    (line,) = checks.warnings(replace(data, groups=groups))
    assert "2 groups are in more than one part: " in line
    assert "ann (train, test), bo (train, validation, test); the errors" in line
