"""Tables whose columns could be taken for others: an index, names that are numbers, ids."""

import decimal

import numpy as np
import pandas
import polars
import pytest

from model.datasets import readers
from model.datasets.readers import Columns
from tests.support.tables import FEATURES, make_table


def test_pandas_index():
    """The levels of an index are columns, if they have the names of such ones."""
    table = make_table().rename(columns={"run": "sequence", "t": "step"})
    expected = readers.from_dataframe(table, features=FEATURES)
    for levels in (["sequence"], ["sequence", "step"], ["temp", "sequence"]):
        indexed = table.set_index(levels).sample(frac=1, random_state=1)
        sequences = readers.from_dataframe(
            indexed.sort_values("step"), features=FEATURES
        )
        order = np.argsort(sequences.ids)
        assert [sequences.ids[n] for n in order] == sorted(expected.ids)
        for n in order:
            place = expected.ids.index(sequences.ids[n])
            np.testing.assert_array_equal(
                sequences.sequence(n), expected.sequence(place)
            )


def test_stored_index(tmp_path):
    """The numbers of rows, which pandas adds to Parquet files, are no feature."""
    path = tmp_path / "data.parquet"
    table = make_table().sample(frac=1, random_state=1)
    table.to_parquet(path)
    columns = Columns("run", "state", "t")
    assert "__index_level_0__" in polars.read_parquet(path).columns
    for sequences in (
        readers.read_sequences(path, columns, training=True),
        readers.from_dataframe(polars.read_parquet(path), columns, training=True),
    ):
        assert set(sequences.features) == {*FEATURES}
        assert not sequences.unused


def test_pandas_names():
    """Columns may have numbers as names; repeated names are refused."""
    table = pandas.DataFrame([[1, 2], [3, 4]], columns=[1, 0])
    for features, frames in (
        (("0", "1"), [[2, 1], [4, 3]]),
        (("x0", "x1"), [[1, 2], [3, 4]]),
    ):
        sequences = readers.from_dataframe(table, features=features)
        assert sequences.frames.tolist() == frames
    twice = table.set_axis(["a", "a"], axis=1)
    with pytest.raises(readers.ReadError, match="column 'a' is repeated"):
        readers.from_dataframe(twice, features=("a",))


@pytest.mark.parametrize("library", [pandas, polars])
def test_dataframe_refusals(library):
    """Errors of DataFrames name arguments in place of the commands' options."""
    rows = {"ID": ["p", "p", "q"], "a": [1.0, 2.0, 3.0], "b": [0, 1, 0]}
    for change, columns, message in (
        (
            {},
            Columns(),
            "did you mean 'ID'? Name it with by=..., or say that the table is one seq",
        ),
        ({}, Columns("ID", "ID"), "column 'ID' was given two meanings"),
        ({"ID": ["p", "", "q"]}, Columns("ID"), "row 1: column 'ID' is empty"),
    ):
        table = library.DataFrame(rows | change)
        with pytest.raises(readers.ReadError) as caught:
            readers.from_dataframe(table, columns, ("a", "b"))
        assert message in str(caught.value)
    with pytest.raises(readers.ReadError, match="Then add by=ID"):
        readers.from_dataframe(library.DataFrame(rows), training=True)


def test_booleans(tmp_path):
    """They are 0 and 1 in a DataFrame and in its Parquet file; missing ones are refused."""
    path = tmp_path / "data.parquet"
    for values, frames in (([True, False], [[1], [0]]), ([True, None], None)):
        table = pandas.DataFrame({"a": pandas.array(values, "boolean")})
        table.to_parquet(path)
        for read in (
            lambda table=table: readers.from_dataframe(table, features=("a",)),
            lambda: readers.read_sequences(path, features=("a",)),
        ):
            if frames is None:
                with pytest.raises(readers.ReadError, match="a number is missing"):
                    read()
            else:
                assert read().frames.tolist() == frames


def test_decimal_steps():
    """Decimal numbers order rows, too."""
    steps = [decimal.Decimal(step) for step in ("10", "9.5")]
    for library in (pandas, polars):
        table = library.DataFrame({"step": steps, "a": [1.0, 2.0]})
        sequences = readers.from_dataframe(table, features=("a",))
        assert sequences.frames.tolist() == [[2], [1]]


def test_misleading_columns(tmp_path):
    """Columns are not taken by their places if their names contradict that."""
    path = tmp_path / "data.csv"
    for text, features, frames in (
        ("1,0\n5,6\n", ("0", "1"), [[6, 5]]),  # a header of numbers
        ("5,6\n", ("0", "1"), [[5, 6]]),  # none
        ("split,a\nx,6\n", ("a",), None),
        ("x1,x0,x2\n5,6,7\n", ("x0", "x1", "x2"), [[6, 5, 7]]),
        ("x1,x0,y\n5,6,7\n", ("x0", "x1", "x2"), None),
        ("run,a\n1,5\n2,6\n", ("a",), None),  # ids, most likely
        ("a;b\n1,234;5.5\n", ("a", "b"), None),  # maybe a thousand
        ("a;b\n1,234;5\n0;1.5\n", ("a", "b"), None),
        ("a;b\n1,234;5\n", ("a", "b"), [[1.234, 5]]),
    ):
        path.write_text(text, encoding="utf-8")
        if frames is None:
            with pytest.raises(readers.ReadError):
                readers.read_sequences(path, features=features)
            continue
        sequences = readers.read_sequences(path, features=features)
        np.testing.assert_allclose(sequences.frames, frames, rtol=1e-6)
    path.write_text("split,a\nup,6\n", encoding="utf-8")
    sequences = readers.read_sequences(path, Columns(label="split"), ("a",))
    assert sequences.classes == ("up",)
