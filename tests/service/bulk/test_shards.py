"""The shards of a bulk job's file: their rows, and limits on what they decode to."""

import contextlib
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.datasets.readers import parquet_pages
from service.bulk import json_lines, nested_parquet, shards
from tests.support.bundles import make_metadata, random_frames
from tests.support.tables import understate

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

KINDS = {
    "list": pa.list_(pa.list_(pa.float32())),
    "double": pa.list_(pa.list_(pa.float64())),
    "large": pa.large_list(pa.large_list(pa.float32())),
    "fixed": pa.list_(pa.list_(pa.float32(), 3)),
    "integer": pa.list_(pa.list_(pa.int64())),
}


def open_file(file, names=("x0", "x1", "x2")):
    """Open a file for a network of these features."""
    metadata = make_metadata(features=len(names))
    inputs = metadata.input.model_copy(update={"names": names})
    return shards.open_file(str(file), metadata.model_copy(update={"input": inputs}))


def rows(file, *names):
    """The rows of each shard of a file."""
    sharded = open_file(file, *names)
    return [
        [sharded.parse(item) for item in sharded.read(number)]
        for number in range(sharded.count)
    ]


class TestLines:
    @given(
        lengths=st.lists(st.integers(1, 60), max_size=40),
        size=st.integers(1, 200),
        ending=st.booleans(),
        breaks=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    )
    def test_each_once(self, tmp_path_factory, lengths, size, ending, breaks):
        """Whatever the size of the shards, each line is in exactly one of them, in order."""
        file = tmp_path_factory.mktemp("lines") / "some.jsonl"
        lines = [b"%d" % place + b"x" * length for place, length in enumerate(lengths)]
        file.write_bytes(breaks.join(lines) + (breaks if ending and lines else b""))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_lines, "SHARD_BYTES", size)
            sharded = open_file(file)
            assert sharded.count == -(-file.stat().st_size // size)
            read = [line for n in range(sharded.count) for line in sharded.read(n)]
        assert [line.rstrip(b"\r") for line in read] == lines

    def test_rows(self, tmp_path):
        """A line has frames and optionally an id; other members are ignored."""
        frames = random_frames(np.random.default_rng(1), 4)
        lines = [
            {"frames": frames.tolist()},
            {"id": "a", "frames": frames.tolist(), "labels": ["x"]},
            {"frames": [[1, 2, 3]], "id": 7},
        ]
        file = tmp_path / "some.ndjson"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        ((first, second, third),) = rows(file)
        assert (first.id, second.id, third.id) == (None, "a", 7)
        np.testing.assert_array_equal(first.frames, frames)
        np.testing.assert_array_equal(second.frames, frames)
        np.testing.assert_array_equal(third.frames, [[1, 2, 3]])
        assert third.frames.dtype == np.float32

    def test_invalid_line(self, tmp_path):
        """An invalid line gives a reason, and the others are read."""
        file = tmp_path / "some.jsonl"
        for line, reason in (
            (b"{", "truncated"),
            (b"[1]", "line Expected `object`, got `array`"),
            (b'{"id": 1}', "line Object missing required field `frames`"),
            (b'{"frames": []}', "frames must have at least one step"),
            (b'{"frames": [[1, 2]]}', "frames[0] has 2 features, the model takes 3"),
            (b'{"frames": [[1, 2, 1e39]]}', "frames[0][2] must be finite in float32"),
            (b'{"frames": [[1, 2, "3"]]}', "frames[0][2] Expected `float`, got `str`"),
            (b'{"frames": [[1, 2, NaN]]}', "frames[0][2] must be a finite"),
            (b'{"frames": [[1, 2, 3]], "id": [1]}', "id Expected"),
            (b'{"frames": [[1, 2, 3]], "id": 18446744073709551616}', "at most 64 bits"),
            (b'{"frames": [[1, 2, 3]], "id": -9223372036854775809}', "at most 64 bits"),
            (b'{"frames": [[1, 2, 3]], "id": "\xff"}', "utf-8"),
        ):
            file.write_bytes(line + b'\n{"frames": [[1, 2, 3]]}\n')
            ((bad, good),) = rows(file)
            assert bad.frames is None
            assert reason in bad.reason
            assert good.frames is not None

    def test_byte_order_mark(self, tmp_path):
        """A byte order mark before the first line is ignored."""
        file = tmp_path / "some.jsonl"
        file.write_bytes(b'\xef\xbb\xbf{"frames": [[1, 2, 3]]}')
        ((row,),) = rows(file)
        assert row.frames is not None

    def test_truncated(self, tmp_path, monkeypatch):
        """A file that shrinks while it is read is an error."""
        monkeypatch.setattr(json_lines, "SHARD_BYTES", 100)
        file = tmp_path / "some.jsonl"
        file.write_bytes(b"x" * 99 + b"\n" + b"y" * 150)
        sharded = open_file(file)
        file.write_bytes(b"x" * 99 + b"\n" + b"y" * 20)
        with pytest.raises(OSError, match="has become shorter"):
            list(sharded.read(1))


class TestParquet:
    def test_rows(self, tmp_path):
        """A shard is a row group, and a row is a sequence, for all list and number
        types."""
        rng = np.random.default_rng(2)
        frames = [rng.integers(-9, 9, (n, 3)) for n in (4, 1, 7, 2, 3)]
        file = tmp_path / "some.parquet"
        for kind in KINDS.values():
            column = pa.array([sequence.tolist() for sequence in frames], kind)
            columns = {"frames": column, "id": list("abcde"), "y": [1] * 5}
            parquet.write_table(pa.table(columns), file, row_group_size=2)
            groups = rows(file)
            assert [len(group) for group in groups] == [2, 2, 1]
            every = [row for group in groups for row in group]
            assert [row.id for row in every] == list("abcde")
            for row, right in zip(every, frames, strict=True):
                np.testing.assert_array_equal(row.frames, right)
                assert row.frames.dtype == np.float32

    def test_invalid_rows(self, tmp_path):
        """An invalid row gives a reason, and the others are read."""
        invalid = [None, [], [[1, 2], [1, 2, 3]], [[]]]
        invalid += [[[1, 2]], [[1, 2, None]], [[1, 2, 1e39]]]
        column = pa.array([*invalid, [[1, 2, 3]]], KINDS["double"])
        file = tmp_path / "some.parquet"
        parquet.write_table(pa.table({"frames": column}), file)
        (group,) = rows(file)
        assert [row.frames is None for row in group] == [True] * 7 + [False]
        assert {row.id for row in group} == {None}
        assert [row.reason for row in group][:7] == [
            *["frames must be steps of equally many numbers"] * 4,
            "frames has 2 features, the model takes 3",
            *["frames must be finite in float32"] * 2,
        ]

    def test_refused_files(self, tmp_path):
        """A file with other columns, or that is not Parquet, is refused."""
        file = tmp_path / "some.parquet"
        for columns, reason in (
            ({"frame": [1]}, r"1 feature columns \(frame\); the network takes 3"),
            ({"frames": [[{"x0": 1, "x1": "a"}]]}, "'x1' holds string; leave it out"),
            ({"frames": [[{"x0": 1, "x2": 1}]]}, "feature 'x1' is missing"),
            ({"frames": [[1.0]]}, "must be lists of lists of numbers"),
            ({"frames": [[["1"]]]}, "must be lists of lists of numbers"),
            ({"frames": [[[1]]], "id": [b"a"]}, "id must be text or whole numbers"),
        ):
            parquet.write_table(pa.table(columns), file)
            with pytest.raises(ValueError, match=reason):
                open_file(file)
        file.write_bytes(b"not Parquet")
        with pytest.raises(
            ValueError, match=r"Parquet magic bytes|Parquet file size is"
        ):
            open_file(file)


class TestDecompression:
    """A thousand bytes of Parquet can decode to gigabytes, so the footer's sizes of a row
    group are checked before it is decoded."""

    @pytest.fixture
    def file(self, tmp_path):
        return tmp_path / "some.parquet"

    def write(self, file, frames, ids=None, **options):
        columns = {"frames": pa.array(frames, KINDS["list"])}
        columns |= {} if ids is None else {"id": ids}
        defaults = {"compression": "zstd", "write_statistics": False}
        parquet.write_table(pa.table(columns), file, **defaults | options)

    def test_row_group(self, file, monkeypatch):
        """A row group with too many rows, numbers or bytes is refused."""
        for limit in ("MAX_NUMBERS", "MAX_ROWS", "MAX_BYTES"):
            monkeypatch.setattr(nested_parquet, limit, 100_000)
        for frames, ids, reason in (
            ([[[0.0] * 3] * 40_000], None, "120,000 numbers in frames"),
            ([[[]] * 120_000], None, "120,000 numbers in frames"),
            ([None] * 120_000, None, "120,000 rows"),
            ([[[1.0]]], ["a" * 120_000], r"120,\d+ bytes of a column"),
        ):
            self.write(file, frames, ids)
            assert file.stat().st_size < 4_000
            message = rf"some\.parquet: {reason} in row group 0, at most 100,000; write"
            with pytest.raises(ValueError, match=message):
                open_file(file)

    @pytest.mark.parametrize("delta", [False, True], ids=["alike", "prefixes"])
    def test_ids(self, file, monkeypatch, delta):
        """Long ids that take few bytes in the file take few in memory. They are refused,
        because each would be in its line of output."""
        monkeypatch.setattr(nested_parquet, "MAX_BYTES", 1_000_000)
        count = 4_000
        ids = [f"{'a' * 20_000}{n if delta else ''}" for n in range(count)]
        encoding = {"id": "DELTA_BYTE_ARRAY"} if delta else None
        options = {"use_dictionary": not delta, "column_encoding": encoding}
        self.write(file, [[[1, 2, 3]]] * count, ids, **options)
        del ids
        assert file.stat().st_size < 100_000
        before = pa.default_memory_pool().max_memory()
        tracemalloc.start()
        (group,) = rows(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        reasons = {row.reason for row in group}
        assert reasons == {"id must have at most 1,000 characters"}
        assert {row.id for row in group} == {None}
        assert peak < 20_000_000
        assert pa.default_memory_pool().max_memory() < before + 20_000_000

    def test_footer_understates(self, file):
        """If the pages hold more than the footer says, nothing is decoded."""
        frames = [[[0.5] * 3] * 40_000]
        for version in ("1.0", "2.0"):
            self.write(file, frames, data_page_version=version, data_page_size=10_000)
            ((row,),) = rows(file)
            assert row.frames.shape == (40_000, 3)
            understate(file, 120_000)
            with pytest.raises(
                ValueError, match="row group 0 holds more than the file"
            ):
                rows(file)

    @given(st.binary(max_size=60))
    def test_no_pages(self, data):
        """Arbitrary bytes in place of pages raise ValueError, or end."""
        with contextlib.suppress(ValueError):
            assert min(parquet_pages.measure_pages(data, 2**40)) >= 0

    def test_in_batches(self, file, monkeypatch):
        """A row group that is decoded in batches gives the same rows."""
        rng = np.random.default_rng(3)
        frames = [random_frames(rng, int(n)) for n in rng.integers(1, 30, 50)]
        ids = [None if n % 7 == 0 else f"id {n // 3}" for n in range(50)]
        monkeypatch.setattr(nested_parquet, "BATCH_NUMBERS", 100)
        self.write(file, [sequence.tolist() for sequence in frames], ids)
        (group,) = rows(file)
        assert [row.id for row in group] == ids
        for row, right in zip(group, frames, strict=True):
            np.testing.assert_array_equal(row.frames, right)


def test_other_files(tmp_path):
    """A file of another format, a folder, or a missing file is refused."""
    for name in ("some.xls", "some", "some.jsonl.gz"):
        (tmp_path / name).write_text("1,2")
        with pytest.raises(ValueError, match=r"unknown format .*; known are \.jsonl"):
            open_file(tmp_path / name)
    for name in ("nowhere.jsonl", "."):
        with pytest.raises(FileNotFoundError, match="no such file"):
            open_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"^unknown://bucket/a\.jsonl: ") as caught:
        open_file("unknown://me:secret@bucket/a.jsonl")
    assert "secret" not in str(caught.value)
