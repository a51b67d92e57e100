"""Tables as people have them: any order of columns and rows, names of their own, no labels."""

import json

import numpy as np
import pandas
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.datasets import answers, readers
from model.datasets.readers import Columns
from tests.model.datasets.data_files import refused
from tests.support.tables import (
    COLUMNS,
    FEATURES,
    WRITERS,
    make_table,
    sequences_of,
    shuffle,
)


@pytest.mark.parametrize("name", WRITERS)
@given(seed=st.integers(0, 2**16))
def test_any_order(tmp_path_factory, name, seed):
    """Columns and rows in any order, in any format, give the same sequences."""
    table = make_table(seed)
    path = tmp_path_factory.mktemp("table") / name
    WRITERS[name](shuffle(table, seed), path)
    sequences = readers.read_sequences(path, COLUMNS, FEATURES)
    frames = sequences_of(table)
    assert sorted(sequences.ids) == sorted(frames)
    for index, key in enumerate(sequences.ids):
        np.testing.assert_allclose(
            sequences.sequence(index), frames[key], rtol=1e-6, atol=1e-9
        )
        assert sequences.steps_of(index).tolist() == list(range(len(frames[key])))
        label = table[table.run == key].state.iloc[0]
        assert sequences.labels_of(index, "classify") == [label]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_dataframes(library):
    """A DataFrame gives the sequences of its rows; missing values are refused."""
    table = make_table()
    mixed = table.sample(frac=1, random_state=1)[["temp", *table.columns[:-1]]]
    convert = polars.from_pandas if library == "polars" else lambda frame: frame
    assert readers.is_dataframe(convert(mixed))
    sequences = readers.from_dataframe(convert(mixed), COLUMNS, FEATURES)
    first = sequences.ids.index("m0")
    expected = table[table.run == "m0"][[*FEATURES]].to_numpy(np.float32)
    np.testing.assert_array_equal(sequences.sequence(first), expected)
    mixed["when"] = pandas.Timestamp("2026-01-01") - pandas.to_timedelta(mixed.t, "h")
    times = Columns(sequence="run", step="when")
    sequences = readers.from_dataframe(convert(mixed), times, FEATURES)
    first = sequences.ids.index("m0")
    np.testing.assert_array_equal(sequences.sequence(first), expected[::-1])
    with pytest.raises(readers.ReadError, match="column 'when' holds Datetime"):
        readers.from_dataframe(convert(mixed), COLUMNS)
    for column, lost, match in (
        ("temp", np.nan, "a number is missing"),
        ("temp", None, "expected numbers"),
        ("run", None, "'run' is empty"),
    ):
        with pytest.raises(readers.ReadError, match=match):
            readers.from_dataframe(
                convert(mixed.assign(**{column: lost})), COLUMNS, FEATURES
            )


def test_integer_ids():
    """Ids that are whole numbers are whole numbers in the answers, to be joined by."""
    table = make_table().assign(run=[7, 7, 7, 8, 9, 9, 9, 9])
    scores = [np.array([1, 0], np.float32)] * 3
    for frame in (table, polars.from_pandas(table)):
        sequences = readers.from_dataframe(frame, COLUMNS, FEATURES)
        assert sequences.ids == ("7", "8", "9")
        answer = answers.of_sequences(sequences, "classify", "ab", scores)
        assert answer["run"].tolist() == [7, 8, 9]


def test_no_dataframe():
    """Lists, arrays and other objects are no DataFrames."""
    for value in ([[1.0]], np.zeros((2, 2)), "text", 7, {"a": [1]}):
        assert not readers.is_dataframe(value)


def test_to_predict(tmp_path):
    """A table to predict needs no label, and no ids: then it is one sequence."""
    path = tmp_path / "one.csv"
    table = make_table()
    table[["temp", "vib y", "vib x"]].to_csv(path, index=False)
    sequences = readers.read_sequences(path, features=FEATURES)
    assert (sequences.ids, sequences.lengths.tolist()) == (("1",), [8])
    assert sequences.labels is None
    np.testing.assert_allclose(sequences.frames, table[[*FEATURES]], rtol=1e-6)
    table[[*FEATURES]].to_csv(path, index=False, header=False)  # by their places
    sequences = readers.read_sequences(path, features=FEATURES)
    np.testing.assert_allclose(sequences.frames, table[[*FEATURES]], rtol=1e-6)


def test_recorded_columns(tmp_path):
    """Names from training count where a table has them and no other is chosen."""
    path = tmp_path / "data.csv"
    table = make_table()
    for frame, columns, ids, labelled in (
        (table, Columns(), ("m0", "m1", "m2"), True),
        (table.drop(columns=["state", "t"]), Columns(), ("m0", "m1", "m2"), False),
        (table.drop(columns=["run"]).iloc[:3], Columns(), ("1",), True),
        (
            table.rename(columns={"run": "sequence"}),
            Columns(),
            ("m0", "m1", "m2"),
            True,
        ),
        (table.rename(columns={"t": "tt"}), Columns(step=""), ("m0", "m1", "m2"), True),
        (table.assign(id=[*"aaaaabbb"], t=range(8)), Columns("id"), ("a", "b"), True),
    ):
        frame.to_csv(path, index=False)
        for sequences in (
            readers.read_sequences(path, columns, FEATURES, recorded=COLUMNS),
            readers.from_dataframe(frame, columns, FEATURES, recorded=COLUMNS),
        ):
            assert sequences.ids == ids
            assert (sequences.labels is not None) == labelled
    for frame, columns, message in (
        (table, Columns("id"), "sequence column 'id' is missing"),
        (table.rename(columns={"run": "Run"}), Columns(), "did you mean 'Run'"),
        (
            table.rename(columns={"t": "tt"}),
            Columns(),
            "column 't' is missing, the step",
        ),
        (  # all that the file has, not the unused columns alone
            table.rename(columns={"run": "zzz"}),
            Columns(),
            "column 'run' is missing, .*; found zzz, t, state, vib x, vib y, temp",
        ),
    ):
        with pytest.raises(readers.ReadError, match=message):
            readers.from_dataframe(frame, columns, FEATURES, recorded=COLUMNS)
    with pytest.raises(readers.ReadError, match="column 'run' is missing"):
        readers.from_dataframe(
            table.drop(columns=["run"]), Columns(), training=True, recorded=COLUMNS
        )


def test_unused_columns(tmp_path):
    """Columns that the network does not take are left out, and named."""
    path = tmp_path / "more.csv"
    make_table().assign(operator="Ann", when="2026-01-01").to_csv(path, index=False)
    sequences = readers.read_sequences(path, COLUMNS, FEATURES)
    assert sequences.unused == ("operator", "when")
    ignore = Columns("run", "state", "t", ignore=("operator", "when"))
    assert readers.read(path, columns=ignore).features == FEATURES


def test_wrong_columns(tmp_path):
    """A column that is missing is named, with the one that is nearest."""
    path = tmp_path / "data.csv"
    make_table().to_csv(path, index=False)
    for columns, features, message in (
        (COLUMNS, ("vibx", "temp"), "feature 'vibx' is missing; did you mean 'vib x'?"),
        (Columns("runs"), FEATURES, "sequence column 'runs' is missing; did you mean"),
        (
            Columns(ignore=("Temp.",)),
            FEATURES,
            "column to ignore 'Temp.' is missing; did",
        ),
        (
            COLUMNS,
            ("zzz", "temp"),
            "feature 'zzz' is missing; found run, t, state, vib x, vib y, temp",
        ),
        (COLUMNS, ("x0", "x1"), "3 feature columns (vib x, vib y, temp); the network"),
    ):
        with pytest.raises(readers.ReadError) as caught:
            readers.read_sequences(path, columns, features)
        assert str(caught.value).startswith(f"{path}, line 1: {message}")


def test_features_without_names(tmp_path):
    """A network whose features have no names takes the columns by their places."""
    path = tmp_path / "data.csv"
    make_table().to_csv(path, index=False)
    sequences = readers.read_sequences(path, COLUMNS, ("x0", "x1", "x2"))
    np.testing.assert_allclose(sequences.frames, make_table()[[*FEATURES]], rtol=1e-6)
    reordered = make_table().rename(
        columns={"vib x": "x2", "vib y": "x0", "temp": "x1"}
    )
    reordered.to_csv(path, index=False)
    sequences = readers.read_sequences(path, COLUMNS, ("x0", "x1", "x2"))
    np.testing.assert_allclose(
        sequences.frames, reordered[["x0", "x1", "x2"]], rtol=1e-6
    )


def test_one_wrong_label(tmp_path):
    """A single row with another label is named; the task is not changed by it."""
    path = tmp_path / "data.csv"
    table = pandas.concat([make_table().assign(run=f"m{n}") for n in range(20)])
    table = table.assign(t=np.tile(np.arange(8), 20), state="ok").reset_index(drop=True)
    table.loc[81, "state"] = "worn"
    table.to_csv(path, index=False)
    message = refused(path, path.read_bytes(), columns=COLUMNS)
    assert message == (
        ": 19 of 20 sequences have one label, but line 83 of sequence 'm10' has"
        " 'worn' where the others have 'ok': mend that to classify, or use --task label"
        " to predict one class for each step"
    )
    assert readers.read(path, task="label", columns=COLUMNS).task == "label"


def test_json_names(tmp_path):
    """Steps of JSON Lines may be objects, whose members are found by their names."""
    path = tmp_path / "data.jsonl"
    steps = [{"b": 2, "a": 1}, {"a": 3, "b": 4, "c": 9}]
    path.write_text(json.dumps({"id": "p7", "frames": steps}), encoding="utf-8")
    sequences = readers.read_sequences(path, features=("a", "b"))
    assert sequences.frames.tolist() == [[1, 2], [3, 4]]
    assert sequences.ids == ("p7",)
    with pytest.raises(readers.ReadError, match="feature 'aa' is missing"):
        readers.read_sequences(path, features=("aa", "b"))


def test_archive_names(tmp_path):
    """Features and ids of an archive have names."""
    path = tmp_path / "data.npz"
    frames = np.arange(6.0).reshape(3, 2)
    np.savez(path, x=frames, lengths=[1, 2], features=["a", "b"], ids=["p", "q"])
    sequences = readers.read_sequences(path, features=("b", "a"))
    assert sequences.frames.tolist() == frames[:, ::-1].tolist()
    assert (sequences.ids, sequences.labels) == (("p", "q"), None)
    with pytest.raises(readers.ReadError, match="array 'y' is missing"):
        readers.read(path)


def test_ts_without_classes(tmp_path):
    """A .ts file to predict needs no classes."""
    path = tmp_path / "data.ts"
    path.write_text("@classLabel false\n@data\n1,2:3,4\n", encoding="utf-8")
    sequences = readers.read_sequences(path, features=("a", "b"))
    assert sequences.frames.tolist() == [[1, 3], [2, 4]]
    with pytest.raises(readers.ReadError, match="2 dimensions; the network takes 3"):
        readers.read_sequences(path, features=("a", "b", "c"))
