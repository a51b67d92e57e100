"""Bulk jobs: sharded files, scoring, the choice of the bundle, and the output folder."""

import contextlib
import importlib.util
import io
import json
import os
import random
import shutil
import threading
import time
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from model.bundle.bundle import BundleError
from model.datasets.readers import parquet_pages
from service import __main__ as main
from service.bulk import bundle_choice, shards
from service.bulk.scorer import Scorer, ShardResult
from service.bulk.shards import Row
from service.cli import predict
from service.settings import Settings
from tests.support.bundles import copy_bundle, random_frames
from tests.support.parquet import understate
from tests.support.servers import SECONDS

pa = pytest.importorskip("pyarrow")
from pyarrow import fs, parquet  # noqa: E402

from service.bulk import job as bulk_job  # noqa: E402
from service.bulk.job import BulkError, Job, OutputFolder, shard_name  # noqa: E402

JOB = Job("many.jsonl", 9, 1, 4, 3, "label", "tags", "1", "d1", "auto", "float32", None)
OTHER_JOB = Job(**vars(JOB) | {"digest": "d2"})
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {
    "list": pa.list_(pa.list_(pa.float32())),
    "double": pa.list_(pa.list_(pa.float64())),
    "large": pa.large_list(pa.large_list(pa.float32())),
    "fixed": pa.list_(pa.list_(pa.float32(), 3)),
    "integer": pa.list_(pa.list_(pa.int64())),
}


def rows(file, features=3):
    """The rows of each shard of a file."""
    sharded = shards.open_file(str(file))
    return [
        [sharded.parse(item, features) for item in sharded.read(number)]
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
            patch.setattr(shards, "SHARD_BYTES", size)
            sharded = shards.open_file(str(file))
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
            (b'{"frames": [[1, 2, NaN]]}', "malformed"),
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
        monkeypatch.setattr(shards, "SHARD_BYTES", 100)
        file = tmp_path / "some.jsonl"
        file.write_bytes(b"x" * 99 + b"\n" + b"y" * 150)
        sharded = shards.open_file(str(file))
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
            ({"frame": [1]}, r"needs one column frames; there are: frame"),
            ({"frames": [[1.0]]}, "must be lists of lists of numbers"),
            ({"frames": [[["1"]]]}, "must be lists of lists of numbers"),
            ({"frames": [[[1]]], "id": [b"a"]}, "id must be text or whole numbers"),
        ):
            parquet.write_table(pa.table(columns), file)
            with pytest.raises(ValueError, match=reason):
                shards.open_file(str(file))
        file.write_bytes(b"not Parquet")
        with pytest.raises(
            ValueError, match=r"Parquet magic bytes|Parquet file size is"
        ):
            shards.open_file(str(file))


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
            monkeypatch.setattr(shards, limit, 100_000)
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
                shards.open_file(str(file))

    @pytest.mark.parametrize("delta", [False, True], ids=["alike", "prefixes"])
    def test_ids(self, file, monkeypatch, delta):
        """Long ids that take few bytes in the file take few in memory. They are refused,
        because each would be in its line of output."""
        monkeypatch.setattr(shards, "MAX_BYTES", 1_000_000)
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
        monkeypatch.setattr(shards, "BATCH_NUMBERS", 100)
        self.write(file, [sequence.tolist() for sequence in frames], ids)
        (group,) = rows(file)
        assert [row.id for row in group] == ids
        for row, right in zip(group, frames, strict=True):
            np.testing.assert_array_equal(row.frames, right)


def test_other_files(tmp_path):
    """A file of another format, a folder, or a missing file is refused."""
    for name in ("some.csv", "some", "some.jsonl.gz"):
        (tmp_path / name).write_text("1,2")
        with pytest.raises(ValueError, match=r"known are \.jsonl, \.ndjson, \.parquet"):
            shards.open_file(str(tmp_path / name))
    for name in ("nowhere.jsonl", "."):
        with pytest.raises(FileNotFoundError, match="no such file"):
            shards.open_file(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"^unknown://bucket/a\.jsonl: ") as caught:
        shards.open_file("unknown://me:secret@bucket/a.jsonl")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "top_k"), [("walks", None), ("tags", 2), ("both", None)]
)
def test_scores(bundles, running_server, name, top_k):
    """Each row gives a line with its id, and the service's prediction or an error."""
    rng = np.random.default_rng(3)
    lengths = [5, 900, 1, 40, 3, 3, 2_500, 17]
    frames = [random_frames(rng, length) for length in lengths]
    items = [Row(place, sequence) for place, sequence in enumerate(frames)]
    items[2:2] = [Row("bad", None, "frames is missing"), Row(None, frames[0])]
    result = Scorer(bundles / name / "1", Settings(), top_k).score(items)
    lines = [json.loads(line) for line in result.text.splitlines()]
    assert (result.sequences, result.refused) == (10, 1)
    assert result.steps == sum(lengths) + 5
    assert [line.get("id") for line in lines] == [0, 1, "bad", None, 2, 3, 4, 5, 6, 7]
    assert lines.pop(2) == {"id": "bad", "error": "frames is missing"}
    frames[2:2] = [frames[0]]
    sequences = [sequence.tolist() for sequence in frames]
    body = {"model": name, "sequences": sequences, "top_k": top_k}
    task = "classify" if name == "walks" else "label"
    right = running_server.http.post(f"/{task}", json=body).json()["predictions"]
    for line, prediction in zip(lines, right, strict=True):
        line.pop("id", None)
        assert line.keys() == prediction.keys()
        for member in ("label", "labels"):
            assert line.get(member) == prediction.get(member)
        if top_k is None:
            np.testing.assert_allclose(
                line["probabilities"], prediction["probabilities"], **CLOSE
            )


def test_replaced_bundle(bundles):
    """A bundle that was replaced since the job began is refused."""
    with pytest.raises(BundleError, match="has been replaced"):
        Scorer(bundles / "walks" / "1", Settings(), None, "0" * 64)


class TestChoose:
    """The bundle that the service would choose."""

    @pytest.fixture
    def root(self, bundles, tmp_path):
        for name in ("walks", "tags", "both"):
            shutil.copytree(bundles / name, tmp_path / name)
        copy_bundle(bundles / "tags" / "1", tmp_path / "tags" / "2", version="2")
        return tmp_path

    def choose(self, root, name, task="label", **settings):
        bundle = bundle_choice.choose(root, task, name, Settings(**settings))
        return f"{bundle.metadata.name}@{bundle.metadata.version}"

    def test_names(self, root):
        """By NAME, NAME@VERSION or NAME@LABEL, or the task's default."""
        assert self.choose(root, "tags") == "tags@2"
        assert self.choose(root, "tags@1") == "tags@1"
        assert self.choose(root, "tags@latest") == "tags@2"
        assert self.choose(root, None) == "both@1"
        assert self.choose(root, None, default_label="tags@1") == "tags@1"
        assert self.choose(root, None, "classify") == "walks@1"
        (root / "tags" / "labels.json").write_text('{"default": 1, "next": 2}')
        assert self.choose(root, "tags") == "tags@1"
        assert self.choose(root, "tags@next") == "tags@2"
        assert self.choose(root, "tags@latest") == "tags@2"

    def test_single_bundle(self, root):
        """The folder may also be a single bundle."""
        shutil.move(root / "tags" / "1", root / "single")
        for name in (None, "tags", "tags@1"):
            assert self.choose(root / "single", name) == "tags@1"
        with pytest.raises(BundleError, match="no bundle tags@2"):
            self.choose(root / "single", "tags@2")

    def test_no_bundle(self, root):
        """If there is no such bundle of the task, the message lists all bundles."""
        for name, task in (
            ("nobody", "label"),
            ("tags@3", "label"),
            ("tags", "classify"),
            ("tags@x", "label"),
        ):
            message = f"no bundle {name} for {task}; there are"
            with pytest.raises(BundleError, match=message):
                self.choose(root, name, task)

    def test_broken(self, root):
        """A broken bundle is an error only for those who ask for it."""
        (root / "both" / "1" / "saved_model.pb").write_bytes(b"none")
        assert self.choose(root, "tags") == "tags@2"
        with pytest.raises(
            BundleError, match=r"both/1/saved_model\.pb: SHA-256 differs"
        ):
            self.choose(root, "both")

    def test_remote(self, root, tmp_path):
        """A URI gives a local copy, which is removed at the end."""
        with bundle_choice.BundleFolder(root.as_uri()) as folder:
            assert folder != root
            assert self.choose(folder, "tags") == "tags@2"
        assert not folder.exists()
        with bundle_choice.BundleFolder(str(root)) as folder:
            assert folder == root
        (tmp_path / "empty").mkdir()
        empty = bundle_choice.BundleFolder((tmp_path / "empty").as_uri())
        with pytest.raises(BundleError, match="no NAME/VERSION"), empty:
            pass


class TestOutputFolder:
    def test_resumes(self, tmp_path):
        """Complete shards are not computed again; incomplete ones are, such as a power cut
        may leave."""
        folder, path = OutputFolder(str(tmp_path / "output")), tmp_path / "output"
        assert folder.begin(JOB) == [0, 1, 2]
        for number in range(3):
            folder.write(shard_name(number), b'{"label": "a"}\n')
        assert folder.begin(JOB) == []
        assert {file.name for file in path.iterdir()} == {
            "job.json",
            *map(shard_name, range(3)),
        }
        for content in (b"", b'{"label": "a"}\n{"lab'):
            (path / "00000001.jsonl").write_bytes(content)
            assert folder.begin(JOB) == [1]
        folder.write(shard_name(1), b"new\n")
        assert (path / "00000001.jsonl").read_bytes() == b"new\n"

    def test_temporary_files(self, tmp_path):
        """A temporary file of a killed run is removed after an hour."""
        (tmp_path / ".job.json.1f").touch()  # killed before it wrote its job
        folder = OutputFolder(str(tmp_path))
        assert folder.begin(JOB) == [0, 1, 2]
        temporary = tmp_path / f".{shard_name(2)}.1f"
        temporary.write_bytes(b"ha")
        folder.begin(JOB)
        assert temporary.exists()
        os.utime(temporary, (0, 0))
        folder.begin(JOB)
        assert not temporary.exists()

    def test_another_job(self, tmp_path):
        """A folder holds the output of one job only."""
        folder = OutputFolder(str(tmp_path))
        folder.begin(JOB)
        for change, reason in (
            ({"digest": "d2"}, "holds another job: digest d1, not d2"),
            ({"top_k": 2, "size": 8}, "size 9, not 8; top_k None, not 2"),
        ):
            with pytest.raises(BulkError, match=reason):
                folder.begin(Job(**vars(JOB) | change))

    def test_two_at_once(self, tmp_path, monkeypatch):
        """Of two jobs that find the folder empty, the second to write is refused."""
        first, second = OutputFolder(str(tmp_path)), OutputFolder(str(tmp_path))
        write = OutputFolder.write

        def write_second_first(self, *arguments, **options):
            monkeypatch.setattr(OutputFolder, "write", write)
            second.begin(OTHER_JOB)
            self.write(*arguments, **options)

        monkeypatch.setattr(OutputFolder, "write", write_second_first)
        with pytest.raises(BulkError, match="holds another job: digest d2, not d1"):
            first.begin(JOB)
        assert [path.name for path in tmp_path.iterdir()] == ["job.json"]

    def test_other_content(self, tmp_path):
        """A folder with an invalid job.json, or with other files, is refused."""
        for text in ("", "[]", "{"):
            (tmp_path / "job.json").write_text(text)
            with pytest.raises(BulkError, match=r"job\.json: does not describe a job"):
                OutputFolder(str(tmp_path)).begin(JOB)
        (tmp_path / "job.json").rename(tmp_path / "mine.txt")
        with pytest.raises(BulkError, match="is not empty, and holds no job"):
            OutputFolder(str(tmp_path)).begin(JOB)

    def test_without_links(self, tmp_path, monkeypatch):
        """It needs no file system with links."""

        def link(*_):
            raise OSError("no links")

        monkeypatch.setattr(os, "link", link)
        assert OutputFolder(str(tmp_path)).begin(JOB) == [0, 1, 2]
        assert [path.name for path in tmp_path.iterdir()] == ["job.json"]

    def test_uri(self, tmp_path):
        """The folder may be in an object store."""
        folder = OutputFolder((tmp_path / "output").as_uri())
        folder.begin(JOB)
        folder.write(shard_name(0), b"line\n")
        assert folder.begin(JOB) == [1, 2]


class ObjectStore:
    """A folder with the semantics of an object store: an object appears when it is
    complete and replaces an older one, and each call takes some time."""

    def __init__(self, root, seed):
        self._root = root
        self._inner = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())
        self._rng = random.Random(seed)

    def __getattr__(self, name):
        time.sleep(self._rng.random() * 0.004)
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def open_output_stream(self, path):
        buffer = io.BytesIO()
        yield buffer
        time.sleep(self._rng.random() * 0.004)
        complete = self._root.parent / uuid.uuid4().hex
        complete.write_bytes(buffer.getvalue())
        complete.rename(self._root / path)


class TestClaims:
    """Two jobs never begin in one folder of an object store."""

    @pytest.fixture(autouse=True)
    def _short_polls(self, monkeypatch):
        monkeypatch.setattr(bulk_job, "POLL_SECONDS", 0.001)

    def folder(self, root, seed=0):
        folder = OutputFolder(root.as_uri())
        folder._system, folder._path = ObjectStore(root, seed), "output"
        return folder

    def begin_at_once(self, root, jobs, seed):
        """The results of jobs that begin at once and find the folder empty."""
        barrier = threading.Barrier(len(jobs))

        def begin(place):
            folder = self.folder(root, f"{seed} {place}")
            list_files = folder._files

            def first():
                files = list(list_files())
                folder._files = list_files
                barrier.wait(SECONDS)
                return iter(files)

            folder._files = first
            try:
                return folder.begin(jobs[place])
            except BulkError as error:
                return str(error)

        with ThreadPoolExecutor() as pool:
            return list(pool.map(begin, range(len(jobs))))

    def test_two_jobs(self, tmp_path):
        """Of two jobs that find the folder empty, one begins and the other is refused."""
        for seed in range(20):
            root = tmp_path / str(seed) / "store"
            root.mkdir(parents=True)
            results = self.begin_at_once(root, [JOB, OTHER_JOB], seed)
            assert results.count([0, 1, 2]) == 1
            (refused,) = (text for text in results if isinstance(text, str))
            assert "holds another job: digest" in refused
            assert [path.name for path in (root / "output").iterdir()] == ["job.json"]
            begun = (JOB, OTHER_JOB)[results.index([0, 1, 2])]
            text = (root / "output" / "job.json").read_text()
            assert json.loads(text) == vars(begun)

    def test_one_job(self, tmp_path):
        """Runs of the same job don't block each other, nor does a stale claim."""
        root = tmp_path / "store"
        (root / "output").mkdir(parents=True)
        claim = root / "output" / f"{bulk_job.CLAIM}{'0' * 64}.1f"
        claim.touch()
        os.utime(claim, (0, 0))
        assert self.begin_at_once(root, [JOB] * 3, 0) == [[0, 1, 2]] * 3
        assert [path.name for path in (root / "output").iterdir()] == ["job.json"]

    def test_killed_run(self, tmp_path, monkeypatch):
        """A claim that a killed run left is an error, and nothing is written."""
        monkeypatch.setattr(bulk_job, "CLAIM_SECONDS", 0.05)
        for digest in ("0" * 64, "f" * 64):
            root = tmp_path / digest
            (root / "output").mkdir(parents=True)
            claim = root / "output" / f"{bulk_job.CLAIM}{digest}.1f"
            claim.touch()
            with pytest.raises(BulkError, match="another job is about to begin here"):
                self.folder(root).begin(JOB)
            assert list((root / "output").iterdir()) == [claim]


def test_default_output():
    """The output folder is FILE.TASK; the query of a URI stays at the end."""
    for file, folder in (
        ("a/b.jsonl", "a/b.jsonl.label"),
        ("what?.jsonl", "what?.jsonl.label"),
        ("s3://a/b.jsonl?region=x", "s3://a/b.jsonl.label?region=x"),
    ):
        assert predict._default_output(file, "label") == folder


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(main.app, [*map(str, arguments)])

    def test_only_with_ray(self, tmp_path):
        """--to needs --engine ray."""
        result = self.run("classify", "a.json", "--to", tmp_path)
        assert result.exit_code == 2
        assert "--to and --bundles need --engine ray" in result.output

    def test_without_ray(self, tmp_path):
        """If Ray is not installed it says so, and writes nothing."""
        if importlib.util.find_spec("ray"):
            pytest.skip("Ray is installed")
        result = self.run("label", tmp_path / "a.jsonl", "--engine", "ray")
        assert result.exit_code == 1
        assert "ray is not installed: pip install 'unrolled[ray]'" in result.output
        assert not list(tmp_path.iterdir())

    def test_progress(self, capsys, monkeypatch):
        """If stderr is no terminal, progress is a line now and then."""
        monkeypatch.setattr(predict, "LOG_SECONDS", -1)
        with predict.JobProgress(3, 1) as progress:
            for _ in range(2):
                progress.add(ShardResult(b"", 10, 200, 1))
        assert progress.totals == {"sequences": 20, "steps": 400, "refused": 2}
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "1 of 3 shards are there already"
        assert [line.partition(",")[0] for line in lines[1:]] == [
            "2 of 3 shards: 10 sequences",
            "3 of 3 shards: 20 sequences",
        ]
