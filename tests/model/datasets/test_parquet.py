"""Parquet files: a bad row is refused by its number, a large file before it is read."""

import sys
import tracemalloc

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet as writer

from model.datasets import readers
from model.datasets.readers import files, parquet
from tests.model.datasets.data_files import make_ragged, refused, write_parquet
from tests.support.tables import understate


def write_columns(path, use_dictionary=True, column_encoding=None, **columns):
    writer.write_table(
        pyarrow.table(columns),
        path,
        compression="zstd",
        use_dictionary=use_dictionary,
        column_encoding=column_encoding,
        write_statistics=False,
    )


def test_refusals(tmp_path, monkeypatch):
    """A bad row is named by its number, from 1, over all blocks."""
    monkeypatch.setattr(parquet, "BLOCK", 2)
    path = tmp_path / "data.parquet"
    for columns, message in (
        ({"label": None}, ": column 'label' is missing"),
        ({"u": None}, ": no feature columns"),
        ({"u": [1.0, None, 3.0]}, ", row 2: a number is missing"),
        ({"u": [1, 2, np.inf]}, ", row 3: column 'u' is not"),
        ({"u": ["1", "2", "3"]}, ": column 'u' holds string"),
        ({"sequence": [1, 2, 1]}, ", row 3: sequence '1'"),
        ({"sequence": [1, 1, None]}, ", row 3: column 'seq"),
        ({"label": ["x", "", "x"]}, ", row 2: column 'label'"),
        ({"label": [0.5] * 3}, ", row 1: column 'label': ex"),
        (
            {"step": np.array([2, 3, 2], np.uint8)},
            ", row 3: sequence '1': the same step as in row 1",
        ),
        ({"step": [0, None, 2]}, ", row 2: column 'step'"),
        ({"split": ["dev"] * 3}, ", row 1: split 'dev'"),
        ({"split": [0, 0, 0]}, ", row 1: split 0 is none"),
    ):
        columns = {"sequence": [1, 1, 1], "label": ["x"] * 3, "u": [1, 2, 3], **columns}
        write_columns(path, **{k: v for k, v in columns.items() if v is not None})
        assert refused(path, path.read_bytes()).startswith(message)


def test_damaged(tmp_path):
    """A file that is cut off or something else is refused in plain words."""
    path = tmp_path / "data.parquet"
    write_parquet(path, make_ragged("classify"))
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:100], whole[:-20], whole[:-8] + whole[-4:]):
        assert refused(path, content).startswith(": not Parquet: ")


def test_not_utf8(tmp_path):
    """Text in another encoding is refused."""
    path = tmp_path / "data.parquet"
    write_parquet(path, make_ragged("classify"))
    content = path.read_bytes().replace(b"c d", b"c\xff\xff")
    assert refused(path, content) == ": holds text that is not UTF-8"


def test_without_pyarrow(tmp_path, monkeypatch):
    """Without pyarrow the message says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(tmp_path / "data.parquet", "")
    assert message.startswith(": reading Parquet needs the package pyarrow")


class TestDecompressionBombs:
    """A small file that decompresses to gigabytes is refused first."""

    @pytest.fixture(autouse=True)
    def max_bytes(self, monkeypatch):
        monkeypatch.setattr(files, "MAX_BYTES", 2_000_000)

    @pytest.fixture
    def not_decompressed(self, monkeypatch):
        monkeypatch.setattr(parquet, "_add", lambda *_: pytest.fail("decompressed"))

    def test_rows(self, tmp_path, not_decompressed):
        """Many equal rows, by the footer."""
        path, rows = tmp_path / "data.parquet", 200_000
        write_columns(path, sequence=["a"] * rows, label=["x"] * rows, u=[0] * rows)
        assert path.stat().st_size < 5_000
        message = refused(path, path.read_bytes())
        assert message.startswith(
            ": its 200,000 rows of 1 features would take 8,800,000"
        )

    def test_long_text(self, tmp_path, not_decompressed):
        """A few rows of very long text that compresses well."""
        path = tmp_path / "data.parquet"
        write_columns(path, sequence=["a" * 5_000_000], label=["x"], u=[0])
        message = refused(path, path.read_bytes())
        assert message.startswith(", row group 0: its encoded columns would take 20,")

    def test_footer_lies(self, tmp_path, not_decompressed):
        """A footer that declares too little is not trusted: Arrow reads the pages."""
        path = tmp_path / "data.parquet"
        write_columns(path, sequence=["a"], label=["x" * 5_000_000], u=[0])
        with writer.ParquetFile(path) as file:
            column = file.metadata.row_group(0).column(1)
        understate(path, column.total_uncompressed_size)
        message = refused(path, path.read_bytes())
        assert message.startswith(", row group 0: its encoded columns would take 20,")

    @pytest.mark.slow
    @pytest.mark.parametrize("column", ["sequence", "label", "split"])
    def test_shared_text(self, tmp_path, column):
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

    def test_prefixes(self, tmp_path):
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

    def test_types(self, tmp_path, not_decompressed):
        """Columns of lists and bytes, which may be of any size, are refused."""
        path, row = tmp_path / "data.parquet", {"sequence": "a", "label": "x", "u": 0}
        for name, value in (("sequence", ["a"]), ("label", b"a"), ("u", [1.0])):
            write_columns(path, **{n: [v] for n, v in (row | {name: value}).items()})
            assert f": column {name!r} holds" in refused(path, path.read_bytes())
