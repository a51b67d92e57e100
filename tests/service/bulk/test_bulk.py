"""Files in shards, their answers, and the folder that these go to."""

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
from service.bulk.scorer import Scorer
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
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {
    "list": pa.list_(pa.list_(pa.float32())),
    "double": pa.list_(pa.list_(pa.float64())),
    "large": pa.large_list(pa.large_list(pa.float32())),
    "fixed": pa.list_(pa.list_(pa.float32(), 3)),
    "integer": pa.list_(pa.list_(pa.int64())),
}


def rows(file, features=3):
    """What each shard of a file holds."""
    found = shards.open_file(str(file))
    return [
        [found.parse(one, features) for one in found.read(number)]
        for number in range(found.count)
    ]


class TestLines:
    @given(
        lengths=st.lists(st.integers(1, 60), max_size=40),
        size=st.integers(1, 200),
        ending=st.booleans(),
        breaks=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    )
    def test_each_once(self, tmp_path_factory, lengths, size, ending, breaks):
        """Whatever the size of shards, each line is in exactly one, in its place."""
        file = tmp_path_factory.mktemp("lines") / "some.jsonl"
        lines = [b"%d" % place + b"x" * length for place, length in enumerate(lengths)]
        file.write_bytes(breaks.join(lines) + (breaks if ending and lines else b""))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "SHARD_BYTES", size)
            found = shards.open_file(str(file))
            assert found.count == -(-file.stat().st_size // size)
            told = [line for n in range(found.count) for line in found.read(n)]
        assert [line.rstrip(b"\r") for line in told] == lines

    def test_rows(self, tmp_path):
        """Frames and ids; what else a line has, such as labels, is passed over."""
        frames = random_frames(np.random.default_rng(1), 4)
        given = [
            {"frames": frames.tolist()},
            {"id": "a", "frames": frames.tolist(), "labels": ["x"]},
            {"frames": [[1, 2, 3]], "id": 7},
        ]
        file = tmp_path / "some.ndjson"
        file.write_text("".join(json.dumps(one) + "\n" for one in given))
        ((first, second, third),) = rows(file)
        assert (first.id, second.id, third.id) == (None, "a", 7)
        np.testing.assert_array_equal(first.frames, frames)
        np.testing.assert_array_equal(second.frames, frames)
        np.testing.assert_array_equal(third.frames, [[1, 2, 3]])
        assert third.frames.dtype == np.float32

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "truncated"),
            ("[1]", "line Expected `object`, got `array`"),
            ('{"id": 1}', "line Object missing required field `frames`"),
            ('{"frames": []}', "frames must have at least one step"),
            ('{"frames": [[1, 2]]}', "frames[0] has 2 features, the model takes 3"),
            ('{"frames": [[1, 2, 1e39]]}', "frames[0][2] must be finite in float32"),
            ('{"frames": [[1, 2, "3"]]}', "frames[0][2] Expected `float`, got `str`"),
            ('{"frames": [[1, 2, NaN]]}', "malformed"),
            ('{"frames": [[1, 2, 3]], "id": [1]}', "id Expected"),
            ('{"frames": [[1, 2, 3]], "id": 18446744073709551616}', "at most 64 bits"),
            ('{"frames": [[1, 2, 3]], "id": -9223372036854775809}', "at most 64 bits"),
            (b'{"frames": [[1, 2, 3]], "id": "\xff"}', "utf-8"),
        ],
    )
    def test_fault(self, tmp_path, line, reason):
        """A line at fault is told, and costs no other its answer."""
        text = line if isinstance(line, bytes) else line.encode()
        file = tmp_path / "some.jsonl"
        file.write_bytes(text + b'\n{"frames": [[1, 2, 3]]}\n')
        ((bad, good),) = rows(file)
        assert bad.frames is None
        assert reason in bad.reason
        assert good.frames is not None

    def test_mark(self, tmp_path):
        """What editors of another system put before the first line is no fault."""
        file = tmp_path / "some.jsonl"
        file.write_bytes(b'\xef\xbb\xbf{"frames": [[1, 2, 3]]}')
        ((row,),) = rows(file)
        assert row.frames is not None

    def test_shorter(self, tmp_path, monkeypatch):
        """A file that shrinks while it is read is an error, not a wait."""
        monkeypatch.setattr(shards, "SHARD_BYTES", 100)
        file = tmp_path / "some.jsonl"
        file.write_bytes(b"x" * 99 + b"\n" + b"y" * 150)
        found = shards.open_file(str(file))
        file.write_bytes(b"x" * 99 + b"\n" + b"y" * 20)
        with pytest.raises(OSError, match="has become shorter"):
            list(found.read(1))


class TestParquet:
    @pytest.mark.parametrize("kind", KINDS)
    def test_rows(self, tmp_path, kind):
        """A row a sequence, a shard a row group, whatever lists and numbers there
        are."""
        rng = np.random.default_rng(2)
        frames = [rng.integers(-9, 9, (n, 3)) for n in (4, 1, 7, 2, 3)]
        column = pa.array([one.tolist() for one in frames], KINDS[kind])
        table = pa.table(
            {"frames": column, "id": ["a", "b", "c", "d", "e"], "y": [1] * 5}
        )
        file = tmp_path / "some.parquet"
        parquet.write_table(table, file, row_group_size=2)
        told = rows(file)
        assert [len(shard) for shard in told] == [2, 2, 1]
        every = [row for shard in told for row in shard]
        assert [row.id for row in every] == ["a", "b", "c", "d", "e"]
        for row, right in zip(every, frames, strict=True):
            np.testing.assert_array_equal(row.frames, right)
            assert row.frames.dtype == np.float32

    def test_faults(self, tmp_path):
        """So is one that is no sequence of such steps."""
        given = [
            None,
            [],
            [[1, 2], [1, 2, 3]],
            [[]],
            [[1, 2]],
            [[1, 2, None]],
            [[1, 2, 1e39]],
        ]
        given.append([[1, 2, 3]])
        file = tmp_path / "some.parquet"
        parquet.write_table(
            pa.table({"frames": pa.array(given, KINDS["double"])}), file
        )
        (told,) = rows(file)
        assert [row.frames is None for row in told] == [True] * 7 + [False]
        assert {row.id for row in told} == {None}
        assert [row.reason for row in told][:7] == [
            *["frames must be steps of equally many numbers"] * 4,
            "frames has 2 features, the model takes 3",
            *["frames must be finite in float32"] * 2,
        ]

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"frame": [1]}, r"needs one column frames; there are: frame"),
            ({"frames": [[1.0]]}, "must be lists of lists of numbers"),
            ({"frames": [[["1"]]]}, "must be lists of lists of numbers"),
            ({"frames": [[[1]]], "id": [b"a"]}, "id must be text or whole numbers"),
            (None, "Parquet magic bytes not found|Parquet file size is"),
        ],
    )
    def test_refused(self, tmp_path, columns, reason):
        file = tmp_path / "some.parquet"
        if columns:
            parquet.write_table(pa.table(columns), file)
        else:
            file.write_bytes(b"no such file")
        with pytest.raises(ValueError, match=reason):
            shards.open_file(str(file))


class TestBombs:
    """A thousand bytes of Parquet can stand for gigabytes: what the file says of a row
    group is asked before any of it is decoded."""

    @pytest.fixture
    def file(self, tmp_path):
        return tmp_path / "some.parquet"

    def write(self, file, frames, ids=None, **options):
        columns = {"frames": pa.array(frames, KINDS["list"])}
        columns |= {} if ids is None else {"id": ids}
        given = {"compression": "zstd", "write_statistics": False} | options
        parquet.write_table(pa.table(columns), file, **given)

    @pytest.mark.parametrize(
        ("bound", "frames", "reason"),
        [
            ("MAX_NUMBERS", [[[0.0] * 3] * 40_000], "120,000 numbers in frames"),
            ("MAX_NUMBERS", [[[]] * 120_000], "120,000 numbers in frames"),
            ("MAX_ROWS", [None] * 120_000, "120,000 rows"),
        ],
    )
    def test_group(self, file, monkeypatch, bound, frames, reason):
        monkeypatch.setattr(shards, bound, 100_000)
        self.write(file, frames)
        assert file.stat().st_size < 4_000
        told = (
            rf"some\.parquet: {reason} in row group 0, at most 100,000; write smaller"
        )
        with pytest.raises(ValueError, match=told):
            shards.open_file(str(file))

    def test_encoded(self, file, monkeypatch):
        """Nor is a column that is large before it is compressed."""
        monkeypatch.setattr(shards, "MAX_BYTES", 100_000)
        self.write(file, [[[1.0]]], ["a" * 120_000])
        with pytest.raises(
            ValueError, match=r"120,\d+ bytes of a column in row group 0"
        ):
            shards.open_file(str(file))

    @pytest.mark.parametrize("delta", [False, True], ids=["alike", "prefixes"])
    def test_ids(self, file, monkeypatch, delta):
        """Long ids that take few bytes in the file take few in memory, and are refused:
        each would stand in its answer."""
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
        (told,) = rows(file)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert {row.reason for row in told} == {"id must have at most 1,000 characters"}
        assert {row.id for row in told} == {None}
        assert taken < 20_000_000
        assert pa.default_memory_pool().max_memory() < before + 20_000_000

    @pytest.mark.parametrize("version", ["1.0", "2.0"])
    def test_footer_lies(self, file, version):
        """Where the pages hold more than the footer says, nothing is decoded."""

        frames = [[[0.5] * 3] * 40_000]
        self.write(file, frames, data_page_version=version, data_page_size=10_000)
        ((row,),) = rows(file)
        assert row.frames.shape == (40_000, 3)
        understate(file, 120_000)
        with pytest.raises(
            ValueError, match="row group 0 holds more than the file's footer says"
        ):
            rows(file)

    @given(st.binary(max_size=60))
    def test_no_pages(self, data):
        """Whatever stands in the place of pages is a ValueError, or comes to an end."""
        with contextlib.suppress(ValueError):
            assert min(parquet_pages.measure_pages(data, 2**40)) >= 0

    def test_in_batches(self, file, monkeypatch):
        """A row group is decoded a few rows at a time, and is the same."""
        rng = np.random.default_rng(3)
        frames = [random_frames(rng, int(n)) for n in rng.integers(1, 30, 50)]
        ids = [None if n % 7 == 0 else f"id {n // 3}" for n in range(50)]
        monkeypatch.setattr(shards, "BATCH_NUMBERS", 100)
        self.write(file, [one.tolist() for one in frames], ids)
        (told,) = rows(file)
        assert [row.id for row in told] == ids
        for row, right in zip(told, frames, strict=True):
            np.testing.assert_array_equal(row.frames, right)


@pytest.mark.parametrize("name", ["some.csv", "some", "some.jsonl.gz"])
def test_formats(tmp_path, name):
    (tmp_path / name).write_text("1,2")
    with pytest.raises(ValueError, match=r"known are \.jsonl, \.ndjson, \.parquet"):
        shards.open_file(str(tmp_path / name))


def test_no_file(tmp_path):
    for name in ("nowhere.jsonl", "."):
        with pytest.raises(FileNotFoundError, match="no such file"):
            shards.open_file(str(tmp_path / name))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", ["walks", "tags", "both"])
def test_scored(bundles, running_server, name, top_k):
    """A line is the prediction that the service gives, in the order of the rows, with
    the row's id; a fault is told in its place."""
    rng = np.random.default_rng(3)
    lengths = [5, 900, 1, 40, 3, 3, 2_500, 17]
    frames = [random_frames(rng, length) for length in lengths]
    given = [Row(place, one) for place, one in enumerate(frames)]
    given[2:2] = [Row("bad", None, "frames is missing"), Row(None, frames[0])]
    scored = Scorer(bundles / name / "1", Settings(), top_k).score(given)
    lines = [json.loads(line) for line in scored.text.splitlines()]
    assert (scored.sequences, scored.refused) == (10, 1)
    assert scored.steps == sum(lengths) + 5
    assert [line.get("id") for line in lines] == [0, 1, "bad", None, 2, 3, 4, 5, 6, 7]
    assert lines.pop(2) == {"id": "bad", "error": "frames is missing"}
    frames[2:2] = [frames[0]]
    body = {
        "model": name,
        "sequences": [one.tolist() for one in frames],
        "top_k": top_k,
    }
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


def test_scored_elsewhere(bundles):
    """A bundle that was replaced since the job began is not taken."""
    with pytest.raises(BundleError, match="has been replaced"):
        Scorer(bundles / "walks" / "1", Settings(), None, "0" * 64)


class TestChosen:
    """The bundle that the service would take."""

    @pytest.fixture
    def root(self, bundles, tmp_path):
        for name in ("walks", "tags", "both"):
            shutil.copytree(bundles / name, tmp_path / name)
        copy_bundle(bundles / "tags" / "1", tmp_path / "tags" / "2", version="2")
        return tmp_path

    def chosen(self, root, name, task="label", **settings):
        found = bundle_choice.choose(root, task, name, Settings(**settings)).metadata
        return f"{found.name}@{found.version}"

    def test_named(self, root):
        assert self.chosen(root, "tags") == "tags@2"
        assert self.chosen(root, "tags@1") == "tags@1"
        assert self.chosen(root, "tags@latest") == "tags@2"
        assert self.chosen(root, "both") == "both@1"

    def test_labelled(self, root):
        (root / "tags" / "labels.json").write_text('{"default": 1, "canary": 2}')
        assert self.chosen(root, "tags") == "tags@1"
        assert self.chosen(root, "tags@canary") == "tags@2"
        assert self.chosen(root, "tags@latest") == "tags@2"

    def test_default(self, root):
        assert self.chosen(root, None) == "both@1"
        assert self.chosen(root, None, default_label="tags@1") == "tags@1"
        assert self.chosen(root, None, "classify") == "walks@1"

    def test_one(self, root):
        """A folder may also be one bundle."""
        shutil.move(root / "tags" / "1", root / "alone")
        for name in (None, "tags", "tags@1"):
            assert self.chosen(root / "alone", name) == "tags@1"

    @pytest.mark.parametrize(
        ("name", "task"),
        [
            ("nobody", "label"),
            ("tags@3", "label"),
            ("tags", "classify"),
            ("tags@x", "label"),
        ],
    )
    def test_none(self, root, name, task):
        with pytest.raises(
            BundleError, match=f"no bundle {name} for {task}; there are"
        ):
            self.chosen(root, name, task)

    def test_broken(self, root):
        """A broken bundle keeps nobody from the others, and is told to who wants it."""
        (root / "both" / "1" / "saved_model.pb").write_bytes(b"none")
        assert self.chosen(root, "tags") == "tags@2"
        with pytest.raises(
            BundleError, match=r"both/1/saved_model\.pb: SHA-256 differs"
        ):
            self.chosen(root, "both")


class TestFolder:
    @pytest.mark.parametrize("left", [b"", b'{"label": "a"}\n{"lab'])
    def test_power_cut(self, tmp_path, left):
        """A shard whose name is there without all of its bytes is computed again."""
        folder = OutputFolder(str(tmp_path))
        folder.begin(JOB)
        for number in range(3):
            folder.write(shard_name(number), b'{"label": "a"}\n')
        assert folder.begin(JOB) == []
        (tmp_path / shard_name(1)).write_bytes(left)
        assert folder.begin(JOB) == [1]

    def test_resumed(self, tmp_path):
        """What is there is not computed again; what was cut off is removed, unless
        it may be of a run that goes on."""
        folder = OutputFolder(str(tmp_path / "answers"))
        assert folder.begin(JOB) == [0, 1, 2]
        folder.write(shard_name(1), b"one\n")
        cut_off = tmp_path / "answers" / f".{shard_name(2)}.1f"
        cut_off.write_bytes(b"ha")
        assert folder.begin(JOB) == [0, 2]
        assert cut_off.exists()
        os.utime(cut_off, (0, 0))
        assert folder.begin(JOB) == [0, 2]
        assert not cut_off.exists()
        names = {path.name for path in (tmp_path / "answers").iterdir()}
        assert names == {"job.json", "00000001.jsonl"}
        assert (tmp_path / "answers" / "00000001.jsonl").read_bytes() == b"one\n"

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"digest": "d2"}, "holds another job: digest d1, not d2"),
            ({"top_k": 2, "size": 8}, "size 9, not 8; top_k None, not 2"),
        ],
    )
    def test_another_job(self, tmp_path, change, reason):
        """Answers of two jobs never lie in one folder."""
        folder = OutputFolder(str(tmp_path))
        folder.begin(JOB)
        other = Job(**vars(JOB) | change)
        with pytest.raises(BulkError, match=reason):
            folder.begin(other)

    def test_two_at_once(self, tmp_path, monkeypatch):
        """Nor where both find it empty."""
        first, second = OutputFolder(str(tmp_path)), OutputFolder(str(tmp_path))
        write = OutputFolder.write

        def faster(self, *given, **options):
            monkeypatch.setattr(OutputFolder, "write", write)
            second.begin(Job(**vars(JOB) | {"digest": "d2"}))
            self.write(*given, **options)

        monkeypatch.setattr(OutputFolder, "write", faster)
        with pytest.raises(BulkError, match="holds another job: digest d2, not d1"):
            first.begin(JOB)
        assert [path.name for path in tmp_path.iterdir()] == ["job.json"]

    def test_killed_at_once(self, tmp_path):
        """A run that did not even write its job is gone on with."""
        (tmp_path / ".job.json.1f").touch()
        assert OutputFolder(str(tmp_path)).begin(JOB) == [0, 1, 2]

    @pytest.mark.parametrize("text", ["", "[]", "{"])
    def test_no_job(self, tmp_path, text):
        (tmp_path / "job.json").write_text(text)
        with pytest.raises(BulkError, match=r"job\.json: does not describe a job"):
            OutputFolder(str(tmp_path)).begin(JOB)

    def test_not_empty(self, tmp_path):
        """Nor do they get among files of others."""
        (tmp_path / "mine.txt").touch()
        with pytest.raises(BulkError, match="is not empty, and holds no job"):
            OutputFolder(str(tmp_path)).begin(JOB)

    def test_elsewhere(self, tmp_path):
        """An object store will do."""
        folder = OutputFolder((tmp_path / "answers").as_uri())
        folder.begin(JOB)
        folder.write(shard_name(0), b"one\n")
        assert folder.begin(JOB) == [1, 2]


class Store:
    """A folder as an object store has it: an object is there whole when it has been
    written, an older one of its name is gone, and everything takes its time."""

    def __init__(self, root, seed):
        self._root = root
        self._inner = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())
        self._rng = random.Random(seed)

    def __getattr__(self, name):
        time.sleep(self._rng.random() * 0.004)
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def open_output_stream(self, path):
        written = io.BytesIO()
        yield written
        time.sleep(self._rng.random() * 0.004)
        whole = self._root.parent / uuid.uuid4().hex
        whole.write_bytes(written.getvalue())
        whole.rename(self._root / path)


class TestClaims:
    """Two jobs never begin in one folder of an object store, which can't create a file
    only where there is none."""

    OTHER = Job(**vars(JOB) | {"digest": "d2"})

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(bulk_job, "POLL_SECONDS", 0.001)

    def folder(self, root, seed=0):
        made = OutputFolder(root.as_uri())
        made._system, made._path = Store(root, seed), "answers"
        return made

    def begun(self, root, jobs, seed):
        """What became of each of some jobs that find the folder empty at once."""
        at_once = threading.Barrier(len(jobs))

        def begin(place):
            folder = self.folder(root, f"{seed} {place}")
            files, found = folder._files, []

            def first():
                found.extend(files())
                folder._files = files
                at_once.wait(SECONDS)
                return iter(found)

            folder._files = first
            try:
                return folder.begin(jobs[place])
            except BulkError as error:
                return str(error)

        with ThreadPoolExecutor() as pool:
            return list(pool.map(begin, range(len(jobs))))

    @pytest.mark.parametrize("seed", range(20))
    def test_two_jobs(self, tmp_path, seed):
        """Of two that find it empty, one begins and the other is told what differs."""
        root = tmp_path / "store"
        root.mkdir()
        told = self.begun(root, [JOB, self.OTHER], seed)
        lost = next((text for text in told if isinstance(text, str)), "both begin")
        assert told.count([0, 1, 2]) == 1
        assert "holds another job: digest" in lost
        assert [path.name for path in (root / "answers").iterdir()] == ["job.json"]
        won = (JOB, self.OTHER)[told.index([0, 1, 2])]
        assert json.loads((root / "answers" / "job.json").read_text()) == vars(won)

    def test_one_job(self, tmp_path):
        """Runs of the same job hold up nobody, nor does a claim of long ago."""
        root = tmp_path / "store"
        (root / "answers").mkdir(parents=True)
        left = root / "answers" / f"{bulk_job.CLAIM}{'0' * 64}.1f"
        left.touch()
        os.utime(left, (0, 0))
        assert self.begun(root, [JOB] * 3, 0) == [[0, 1, 2]] * 3
        assert [path.name for path in (root / "answers").iterdir()] == ["job.json"]

    @pytest.mark.parametrize("digest", ["0" * 64, "f" * 64], ids=["lower", "higher"])
    def test_about_to(self, tmp_path, monkeypatch, digest):
        """One that was killed while it began is told, and nothing is written."""
        monkeypatch.setattr(bulk_job, "CLAIM_SECONDS", 0.05)
        root = tmp_path / "store"
        (root / "answers").mkdir(parents=True)
        left = root / "answers" / f"{bulk_job.CLAIM}{digest}.1f"
        left.touch()
        with pytest.raises(BulkError, match="another job is about to begin here"):
            self.folder(root).begin(JOB)
        assert list((root / "answers").iterdir()) == [left]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("a/b.jsonl", "a/b.jsonl.label"),
        ("what?.jsonl", "what?.jsonl.label"),
        ("s3://a/b.jsonl?region=x", "s3://a/b.jsonl.label?region=x"),
    ],
)
def test_beside(file, folder):
    """Where the answers go, unless another place is named."""
    assert predict._default_output(file, "label") == folder


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(main.app, [*map(str, arguments)])

    def test_only_with_ray(self, tmp_path):
        made = self.run("classify", "a.json", "--to", tmp_path)
        assert made.exit_code == 2
        assert "--to and --bundles need --engine ray" in made.output

    def test_without_ray(self, tmp_path):
        """It says what is missing, and leaves nothing behind."""
        if importlib.util.find_spec("ray"):
            pytest.skip("Ray is installed")
        made = self.run("label", tmp_path / "a.jsonl", "--engine", "ray")
        assert made.exit_code == 1
        assert "ray is not installed: pip install 'unrolled[ray]'" in made.output
        assert not list(tmp_path.iterdir())
