"""The output folder of a bulk job: complete shards, and one job at a time."""

import contextlib
import io
import json
import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.servers import SECONDS

pytest.importorskip("pyarrow")
from pyarrow import fs

from service.bulk import job as bulk_job
from service.bulk.job import BulkError, Job, OutputFolder, shard_name

JOB = Job("many.jsonl", 9, 1, 4, 3, "label", "tags", "1", "d1", "auto", "float32", None)
OTHER_JOB = Job(**vars(JOB) | {"digest": "d2"})


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
