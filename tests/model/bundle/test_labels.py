"""Labels of versions: read, written, and which version is the default."""

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.bundle import bundle, labels
from model.bundle.bundle import BundleError
from model.bundle.labels import LABELS
from tests.support.versions import make_versions, write_labels

INVALID = [
    (b"",),
    (b"{stable: 1}",),
    (b'{"stable": 1',),
    (b'{"stable": 1} {}',),
    ([["stable", 1]],),
    (None,),
    ({"stable": "1"}, "int"),
    (b'{"stable": 1.0}', "int"),
    ({"stable": True}, "int"),
    ({"stable": None}, "int"),
    (b'{"a":' * 5_000, "int"),
    (b'{"a":' + b"9" * 5_000 + b"}",),
    ({"latest": 1}, "latest"),
    ({"": 1}, "label"),
    ({"1": 1}, "'1'"),
    ({"1st": 1}, "'1st'"),
    ({"Stable": 1}, "'Stable'"),
    ({"v1.2": 1}, "'v1.2'"),
    ({"a@b": 1}, "'a@b'"),
    ({"a/b": 1}, "'a/b'"),
    ({"stable\n": 1}, "label"),
    ({"stäbil": 1}, "label"),
    ({"a" * 33: 1}, "label"),
    ({f"label-{number}": 1 for number in range(65)}, "64 labels"),
    ({"stable": 1, "next": 3}, "next", "3", "there is no version"),
    ({"stable": 0}, "there is no version"),
    ({"stable": -1}, "there is no version"),
    ({"stable": 10**30}, "there is no version"),
    (b"\xff\xfe",),
    (b'{"stabl\xff": 1}',),
]


class TestRead:
    @pytest.fixture
    def folder(self, tmp_path):
        return make_versions(tmp_path / "walks", 1, 2)

    def test_none(self, folder):
        """Without the file there are no labels."""
        assert labels.read(folder) == {}

    def test_read(self, folder):
        """All labels are read, `default` among them."""
        content = {"default": 1, "stable": 1, "next": 2, "a": 2, "b-2_c": 1}
        write_labels(folder, content)
        assert labels.read(folder) == content

    def test_most(self, folder):
        """64 labels of 32 characters are allowed."""
        content = {f"{'a' * 30}{number:02}": 1 for number in range(64)}
        write_labels(folder, content)
        assert labels.read(folder) == content

    def test_invalid(self, folder):
        """Invalid labels are an error that names the file and the reason."""
        for content, *messages in INVALID:
            write_labels(folder, content)
            with pytest.raises(BundleError) as caught:
                labels.read(folder)
            for message in (str(folder / LABELS), *messages):
                assert message in str(caught.value), content

    def test_folder_in_its_place(self, folder):
        """So is a folder in the place of the file."""
        (folder / LABELS).mkdir()
        with pytest.raises(BundleError, match=LABELS):
            labels.read(folder)


class TestSeveralFolders:
    @pytest.fixture
    def pair(self, tmp_path):
        """The folders of one name in two folders of bundles."""
        first = make_versions(tmp_path / "first" / "walks", 1, 2)
        return first, tmp_path / "second" / "walks"

    def test_last_counts(self, pair):
        """The labels of the last folder that has some count, for versions of all."""
        first, second = pair
        write_labels(first, {"default": 1, "stable": 2})
        assert labels.read(first, second) == {"default": 1, "stable": 2}
        second.mkdir(parents=True)
        write_labels(second, {"default": 2})
        assert labels.read(first, second) == {"default": 2}
        assert labels.read(second, first) == {"default": 1, "stable": 2}

    def test_written_to_the_last(self, pair):
        """A change is written to the last folder, with the other labels."""
        first, _ = pair
        write_labels(first, {"default": 2, "stable": 1})
        assert labels.promote(pair, 1) == 2
        assert labels.read(first) == {"default": 2, "stable": 1}
        assert labels.read(*pair) == {"default": 1, "stable": 1}
        assert labels.rollback(pair) == (1, 2)
        assert labels.default(pair) == 2


def publish(folder, version):
    """Publish an empty version as training does."""
    temporary = folder / f".{version}"
    temporary.mkdir(parents=True)
    labels.publish(temporary, folder / str(version), [folder])


class TestPublish:
    def test_first(self, tmp_path):
        """The first version of a name gets no label."""
        publish(tmp_path / "walks", 1)
        assert not (tmp_path / "walks" / LABELS).exists()
        assert labels.default([tmp_path / "walks"]) == 1

    def test_pins(self, tmp_path, monkeypatch):
        """The default is written before the new version appears, and stays."""
        folder = make_versions(tmp_path / "walks", 1)
        write_labels(folder, {"stable": 1})
        rename = os.rename

        def checked(*paths):
            assert labels.read(folder) == {"stable": 1, "default": 1}
            assert int(paths[1].name) not in bundle.versions(folder)
            rename(*paths)

        monkeypatch.setattr(os, "rename", checked)
        publish(folder, 2)
        assert bundle.versions(folder) == [1, 2]
        publish(folder, 3)
        assert labels.default([folder]) == 1

    def test_broken_labels(self, tmp_path):
        """With labels that can't be read nothing is published."""
        folder = make_versions(tmp_path / "walks", 1)
        write_labels(folder, b"{")
        with pytest.raises(BundleError, match=LABELS):
            publish(folder, 2)
        assert bundle.versions(folder) == [1]


class TestPromote:
    @pytest.fixture
    def folder(self, tmp_path):
        return make_versions(tmp_path / "walks", 1, 2, 3)

    def test_default(self, folder):
        """The default changes, other labels stay; the version before is returned."""
        write_labels(folder, {"stable": 1})
        assert labels.promote([folder], 2) == 3  # the newest is the default at first
        assert labels.read(folder) == {"stable": 1, "default": 2}
        assert labels.promote([folder], 2) == 2
        assert labels.promote([folder], 3, "next") is None
        assert labels.promote([folder], 1, "next") == 3
        assert labels.read(folder) == {"stable": 1, "default": 2, "next": 1}

    def test_only_instead_of(self, folder):
        """If the default has changed meanwhile, it is left."""
        labels.promote([folder], 1)
        assert labels.promote([folder], 3, instead_of=2) == 1
        assert labels.default([folder]) == 1
        assert labels.promote([folder], 3, instead_of=1) == 1
        assert labels.default([folder]) == 3

    def test_refused(self, folder):
        """A version that does not exist, and an impossible label, change nothing."""
        write_labels(folder, {"stable": 1})
        for version, label in ((4, "default"), (0, "a"), (1, "latest"), (1, "No")):
            with pytest.raises(BundleError):
                labels.promote([folder], version, label)
        assert labels.read(folder) == {"stable": 1}

    def test_rollback(self, folder):
        """Each rollback goes one change further back, until there is none."""
        with pytest.raises(BundleError, match="no other version"):
            labels.rollback([folder])
        for version in (1, 2, 2, 3):
            labels.promote([folder], version)
        write_labels(folder, labels.read(folder) | {"stable": 3})
        assert labels.rollback([folder]) == (3, 2)
        assert labels.rollback([folder]) == (2, 1)
        assert labels.rollback([folder]) == (1, 3)  # the newest, before the first label
        assert labels.read(folder) == {"default": 3, "stable": 3}
        with pytest.raises(BundleError, match="no other version"):
            labels.rollback([folder])

    def test_rollback_passes_over_removed(self, folder):
        """Versions that were removed are passed over, and a damaged history is empty."""
        for version in (1, 2, 3):
            labels.promote([folder], version)
        shutil.rmtree(folder / "2")
        assert labels.rollback([folder]) == (3, 1)
        (folder / labels.HISTORY).write_text("[1,")
        with pytest.raises(BundleError, match="no other version"):
            labels.rollback([folder])

    def test_concurrent(self, folder):
        """No change of several writers at once is lost, and readers never fail."""
        done = threading.Event()

        def promote(number):
            for version in (1, 2, 3):
                labels.promote([folder], version, f"label-{number}")
            return number

        def read():
            counts = [0]
            while not done.is_set():
                counts.append(len(labels.read(folder)))
                assert counts[-1] >= counts[-2], "a label is lost"
            return counts[-1]

        with ThreadPoolExecutor(9) as pool:
            reader = pool.submit(read)
            numbers = list(pool.map(promote, range(8)))
            done.set()
        assert reader.result() <= 8
        assert labels.read(folder) == {f"label-{number}": 3 for number in numbers}

    def test_power_cut(self, folder, monkeypatch):
        """Whatever step fails, the labels are the former ones or the new ones; the new
        content is on the disk before it gets the file's name."""
        labels.promote([folder], 1)
        for step in ("fsync", "chmod", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, step, lambda *_: fail())
                with pytest.raises(BundleError, match="broken disk"):
                    labels.promote([folder], 2)
            assert labels.read(folder) == {"default": 1}
        steps = []
        for step in ("fsync", "replace"):

            def noted(*arguments, step=step, call=getattr(os, step)):
                steps.append(step)
                call(*arguments)

            monkeypatch.setattr(os, step, noted)
        labels.promote([folder], 2)
        assert steps == ["fsync", "replace", "fsync"] * 2  # of the history, the labels
        names = {path.name for path in folder.iterdir() if not path.is_dir()}
        assert names == {LABELS, labels.HISTORY, labels.LOCK}

    def test_locked(self, folder, monkeypatch):
        """A writer that holds the lock for long is reported."""
        monkeypatch.setattr(labels, "LOCK_SECONDS", 0.1)
        with (
            labels._locked(folder),
            pytest.raises(BundleError, match="another process has been changing"),
        ):
            labels.promote([folder], 1)


def fail():
    raise OSError(errno.EIO, "broken disk")
