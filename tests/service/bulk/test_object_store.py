"""The mirror of bundles in an object store: complete versions are copied."""

import contextlib
import io
import itertools
import json
import shutil
import threading
from errno import ENOSPC

import pytest

from model.bundle import bundle, folders, labels
from model.bundle.bundle import BundleError
from service.bulk import object_store
from service.bulk.object_store import Mirror
from tests.support.bundles import copy_bundle
from tests.support.servers import SECONDS, wait

fs = pytest.importorskip("pyarrow.fs")


@pytest.fixture
def remote(bundles, tmp_path):
    """A folder with two bundles, which PyArrow opens by its URI."""
    folder = tmp_path / "remote"
    for name in ("walks", "tags"):
        shutil.copytree(bundles / name, folder / name)
    return folder


@pytest.fixture
def mirror(remote):
    mirror = Mirror(remote.as_uri())
    yield mirror
    mirror.close()
    assert not mirror.folder.exists()


def digests(mirror):
    """The digests of the copied versions by name and number; all are complete."""
    return {
        (versions.name, number): bundle.read(folder).digest
        for versions in folders.scan(mirror.folder)
        for number, folder in versions.versions.items()
    }


def copied(mirror):
    """The names and numbers of the copied versions, also while these change."""
    return {
        (versions.name, number)
        for versions in folders.scan(mirror.folder)
        for number in versions.versions
    }


def changed(mirror, before):
    """Returns whether version 1 of walks has changed."""
    try:
        return digests(mirror)["walks", 1] != before["walks", 1]
    except (BundleError, KeyError):  # it changes while it is read
        return False


def test_copied(remote, mirror, bundles):
    """All versions and labels are copied, and nothing else."""
    (remote / "walks" / "labels.json").write_text('{"stable": 1}')
    (remote / "README").write_text("no bundle")
    mirror.start(0)
    assert digests(mirror) == {
        (name, 1): bundle.read(bundles / name / "1").digest
        for name in ("walks", "tags")
    }
    assert labels.read(mirror.folder / "walks") == {"stable": 1}
    assert {path.name for path in mirror.folder.iterdir()} == {"walks", "tags"}


def test_followed(remote, mirror, bundles):
    """New, changed and removed versions are synced."""
    mirror.start(0.05)
    written = copy_bundle(bundles / "walks" / "1", remote.parent / "new", version="2")
    written.rename(remote / "walks" / "2")
    wait(lambda: ("walks", 2) in copied(mirror), "it is copied")
    before = digests(mirror)
    shutil.rmtree(remote / "walks" / "1")
    copy_bundle(bundles / "walks" / "1", remote / "walks" / "1", temperature=2.0)
    wait(lambda: changed(mirror, before), "it is copied again")
    shutil.rmtree(remote / "walks" / "2")
    wait(lambda: ("walks", 2) not in copied(mirror), "it is removed")
    (remote / "tags" / "labels.json").write_text('{"stable": 1}')
    wait(
        lambda: labels.read(mirror.folder / "tags"),
        "the labels are copied",
    )


def test_labels_first(remote, mirror, bundles, monkeypatch):
    """Labels are copied before new versions, which they may keep from being served."""
    mirror.start(0)
    (remote / "walks" / "labels.json").write_text('{"default": 1}')
    copy_bundle(bundles / "walks" / "1", remote / "walks" / "2", version="2")
    copies = []

    def copy(place, stamp, copy=mirror._copy):
        copies.append(place)
        copy(place, stamp)

    monkeypatch.setattr(mirror, "_copy", copy)
    mirror.sync()
    assert copies == ["walks/labels.json", "walks/2"]


def test_incomplete(remote, mirror, bundles):
    """A bundle that is still being written is copied when it is complete."""
    copy_bundle(bundles / "walks" / "1", remote / "walks" / "2", version="2")
    marker = remote / "walks" / "2" / bundle.MARKER
    text = marker.read_text()
    marker.unlink()
    with pytest.raises(BundleError, match=r"remote/walks/2: no assets\.extra"):
        mirror.sync()
    assert digests(mirror).keys() == {("walks", 1), ("tags", 1)}
    files = json.loads(text)["files"]
    marker.write_text(text.replace(files["saved_model.pb"], 64 * "0"))
    with pytest.raises(BundleError, match=r"2/saved_model\.pb: SHA-256 differs"):
        mirror.sync()
    assert digests(mirror).keys() == {("walks", 1), ("tags", 1)}
    marker.write_text(text)
    mirror.sync()
    assert ("walks", 2) in digests(mirror)


def test_no_bundle(tmp_path):
    """No bundle at the start is an error with the location."""
    (tmp_path / "empty").mkdir()
    mirror = Mirror((tmp_path / "empty").as_uri())
    try:
        with pytest.raises(BundleError, match="empty: no NAME/VERSION with a bundle"):
            mirror.start(0)
    finally:
        mirror.close()


def test_incomplete_at_the_start(remote, mirror, bundles):
    """An incomplete bundle at the start is no error, and is not downloaded again before
    it changes."""
    copy_bundle(bundles / "walks" / "1", remote / "walks" / "2", version="2")
    (remote / "walks" / "2" / bundle.MARKER).unlink()
    mirror.start(0)
    assert digests(mirror).keys() == {("walks", 1), ("tags", 1)}
    mirror.sync()  # raises nothing


def test_odd_names(remote, mirror):
    """Objects whose names can't be bundles are ignored."""
    for name in ("UPPER", ".hidden"):
        shutil.copytree(remote / "walks", remote / name)
    mirror.start(0)
    assert digests(mirror).keys() == {("walks", 1), ("tags", 1)}


class StoreWithOddName:
    """An object store with an object whose name a folder can't have."""

    def __init__(self, inner, root, name):
        self._inner, self._odd = inner, f"{root}/{name}"

    def get_file_info(self, selector):
        kind = fs.FileType.File
        odd = fs.FileInfo(self._odd, type=kind, size=4, mtime_ns=1)
        return [*self._inner.get_file_info(selector), odd]

    def open_input_stream(self, path):
        if path == self._odd:
            return io.BytesIO(b"evil")
        return self._inner.open_input_stream(path)


class Clock:
    """A clock on which waits take no time; after each wait `do` is called."""

    def __init__(self, mirror, monkeypatch, syncs, do=lambda left: None):
        self.now, self._left, self._do = 0.0, syncs, do
        monkeypatch.setattr(object_store.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(mirror._stop, "wait", self.wait)

    def wait(self, seconds):
        self.now += seconds
        self._left -= 1
        self._do(self._left)
        return self._left < 0


class TestFullDisk:
    """A version for which the disk has no room is not downloaded with each sync."""

    @pytest.fixture
    def attempts(self, remote, mirror, bundles, monkeypatch):
        """The times of attempts to copy a third version to a full disk."""
        mirror.start(0)
        mirror._sync_seconds = 5
        copy_bundle(bundles / "walks" / "1", remote / "walks" / "2", version="2")
        copy, attempts = mirror._copy, []

        def without_room(place, stamp):
            if self.room or place != "walks/2":
                return copy(place, stamp)
            attempts.append(object_store.time.monotonic())
            raise OSError(ENOSPC, "No space left on device")

        self.room = False
        monkeypatch.setattr(mirror, "_copy", without_room)
        return attempts

    def test_backs_off(self, mirror, attempts, monkeypatch, caplog):
        """It is retried after twice as long each time, at most after five minutes, and
        each failure is logged with the time of the next attempt."""
        Clock(mirror, monkeypatch, syncs=360)  # half an hour, each 5 s
        mirror._sync_repeatedly(5)
        waits = [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
        assert [
            after - before for before, after in itertools.pairwise(attempts)
        ] == waits
        records = [r for r in caplog.records if r.message == "bundle not copied"]
        assert [record.retry_seconds for record in records] == [*waits, 300]
        assert {record.reason for record in records} == {
            "[Errno 28] No space left on device"
        }

    def test_room(self, mirror, attempts, monkeypatch):
        """When the disk has room again it is copied with the next attempt."""
        clock = Clock(mirror, monkeypatch, 0)
        for turn in range(9):
            clock.now, self.room = 5.0 * turn, turn > 3
            with contextlib.suppress(OSError):
                mirror.sync()
            assert (("walks", 2) in digests(mirror)) == (turn > 6)
        assert len(attempts) == 3
        assert not mirror._failed

    @pytest.mark.parametrize("change", ["same", "other"])
    def test_changed(self, remote, mirror, attempts, monkeypatch, change):
        """It is retried at once when it changes, or when another version is removed."""

        def do(left):
            if left == 10 and change == "other":
                shutil.rmtree(remote / "tags")
            elif left == 10:
                (remote / "walks" / "2" / "more").touch()

        Clock(mirror, monkeypatch, 50, do)
        mirror._sync_repeatedly(5)
        assert [at / 5 for at in attempts] == [1, 2, 4, 8, 16, 32, 40, 41, 43, 47]


@pytest.mark.parametrize("up", ["../" * 3, "a/../" + "../" * 3, "/"])
def test_path_traversal(mirror, up):
    """No object is written outside the mirror's folder."""
    name = f"walks/1/{up}written-outside"
    mirror._filesystem = StoreWithOddName(mirror._filesystem, mirror._root, name)
    mirror.start(0)
    assert digests(mirror).keys() == {("walks", 1), ("tags", 1)}
    around = (mirror.folder, *mirror.folder.parents)
    assert not any((folder / "written-outside").exists() for folder in around)


def test_too_large(remote, mirror, monkeypatch):
    """A version that is larger than a bundle may be is not copied."""
    monkeypatch.setattr(object_store, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="too large"):
        mirror.start(0)
    assert not list(mirror.folder.glob("*/*/*"))


def test_closed_while_copying(remote, mirror, monkeypatch):
    """Nothing is left of a copy that was under way when the mirror was closed."""
    monkeypatch.setattr(object_store, "JOIN_SECONDS", 0.1)
    begun, go, copy = threading.Event(), threading.Event(), mirror._copy

    def slowly(*arguments):
        begun.set()
        assert go.wait(SECONDS)
        copy(*arguments)

    mirror.start(0.05)
    monkeypatch.setattr(mirror, "_copy", slowly)
    (remote / "walks" / "labels.json").write_text('{"stable": 1}')
    assert begun.wait(SECONDS)
    mirror.close()
    go.set()
    mirror._thread.join(SECONDS)
    assert not mirror.folder.exists()


def test_without_credentials():
    """A key in a URI is not shown."""
    shown = object_store.without_credentials("s3://me:secret@bucket/a")
    assert shown == "s3://bucket/a"
    assert object_store.without_credentials("s3://bucket/a@b") == "s3://bucket/a@b"


def test_unknown_scheme():
    """An unknown URI is refused, and the message has no key of it."""
    with pytest.raises(ValueError, match="unknown://bucket") as caught:
        Mirror("unknown://me:secret@bucket")
    assert "secret" not in str(caught.value)


def test_is_remote():
    """URIs are remote, paths are not."""
    assert all(map(object_store.is_remote, ("s3://bucket/a", "gs://b", "file:///a/b")))
    assert not any(map(object_store.is_remote, ("", "/a/b", "bundles", "C:/b", "a:b")))
