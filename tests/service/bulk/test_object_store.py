"""Bundles of an object store: taken over whole, or not at all."""

import contextlib
import io
import itertools
import json
import shutil
import threading
from errno import ENOSPC

import pytest

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service.bulk import object_store
from service.bulk.object_store import Mirror
from service.registry import folder as repository
from tests.support.bundles import copy_bundle
from tests.support.servers import SECONDS, wait

fs = pytest.importorskip("pyarrow.fs")


@pytest.fixture
def there(bundles, tmp_path):
    """What Arrow takes for an object store, with two bundles."""
    folder = tmp_path / "there"
    for name in ("walks", "tags"):
        shutil.copytree(bundles / name, folder / name)
    return folder


@pytest.fixture
def made(there):
    made = Mirror(there.as_uri())
    yield made
    made.close()
    assert not made.folder.exists()


def served(made):
    """Name, version -> digest of what lies in the copy; all of it is whole."""
    return {
        (shelf.name, number): bundle.read(folder).digest
        for shelf in repository.scan(made.folder)
        for number, folder in shelf.versions.items()
    }


def names(made):
    """Names and versions of what lies in the copy, also while that changes."""
    return {
        (s.name, number) for s in repository.scan(made.folder) for number in s.versions
    }


def changed(made, before):
    """Whether the first version of walks is another now."""
    try:
        return served(made)["walks", 1] != before["walks", 1]
    except (BundleError, KeyError):  # it changes while it is read
        return False


def test_copied(there, made, bundles):
    """All of it, and nothing else."""
    (there / "walks" / "labels.json").write_text('{"stable": 1}')
    (there / "README").write_text("no bundle")
    made.start(0)
    assert served(made) == {
        (name, 1): bundle.read(bundles / name / "1").digest
        for name in ("walks", "tags")
    }
    assert repository.read_labels(made.folder / "walks") == {"stable": 1}
    assert {path.name for path in made.folder.iterdir()} == {"walks", "tags"}


def test_followed(there, made, bundles):
    """What comes, changes and goes there comes, changes and goes here."""
    made.start(0.05)
    written = copy_bundle(bundles / "walks" / "1", there.parent / "new", version="2")
    written.rename(there / "walks" / "2")
    wait(lambda: ("walks", 2) in names(made), "it has come")
    before = served(made)
    shutil.rmtree(there / "walks" / "1")
    copy_bundle(bundles / "walks" / "1", there / "walks" / "1", temperature=2.0)
    wait(lambda: changed(made, before), "it has changed")
    shutil.rmtree(there / "walks" / "2")
    wait(lambda: ("walks", 2) not in names(made), "it has gone")
    labels = there / "tags" / "labels.json"
    labels.write_text('{"stable": 1}')
    wait(lambda: repository.read_labels(made.folder / "tags"), "labels have come")


def test_half(there, made, bundles):
    """A bundle that is being written is left until it is whole; the others are not."""
    copy_bundle(bundles / "walks" / "1", there / "walks" / "2", version="2")
    marker = there / "walks" / "2" / bundle.MARKER
    text = marker.read_text()
    marker.unlink()
    with pytest.raises(BundleError, match=r"there/walks/2: no assets\.extra"):
        made.sync()
    assert served(made).keys() == {("walks", 1), ("tags", 1)}
    files = json.loads(text)["files"]
    marker.write_text(text.replace(files["saved_model.pb"], 64 * "0"))
    with pytest.raises(BundleError, match=r"2/saved_model\.pb: SHA-256 differs"):
        made.sync()
    assert served(made).keys() == {("walks", 1), ("tags", 1)}
    marker.write_text(text)
    made.sync()
    assert ("walks", 2) in served(made)


def test_nothing(tmp_path):
    """No bundle at the start is an error that says where."""
    (tmp_path / "empty").mkdir()
    made = Mirror((tmp_path / "empty").as_uri())
    try:
        with pytest.raises(BundleError, match="empty: no NAME/VERSION with a bundle"):
            made.start(0)
    finally:
        made.close()


def test_half_at_the_start(there, made, bundles):
    """What is being written while a replica starts keeps it from nothing, and is not
    fetched again before there is more of it."""
    copy_bundle(bundles / "walks" / "1", there / "walks" / "2", version="2")
    (there / "walks" / "2" / bundle.MARKER).unlink()
    made.start(0)
    assert served(made).keys() == {("walks", 1), ("tags", 1)}
    made.sync()  # raises nothing


def test_odd_names(there, made):
    """Objects whose names are none of bundles are left alone."""
    for name in ("UPPER", ".hidden"):
        shutil.copytree(there / "walks", there / name)
    made.start(0)
    assert served(made).keys() == {("walks", 1), ("tags", 1)}


class Store:
    """An object store with an object whose name leads out of any folder: a folder
    can't have one."""

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
    """A thread's waits, which take no time: after each, `do` is called."""

    def __init__(self, made, monkeypatch, looks, do=lambda look: None):
        self.now, self._left, self._do = 0.0, looks, do
        monkeypatch.setattr(object_store.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(made._stop, "wait", self.wait)

    def wait(self, seconds):
        self.now += seconds
        self._left -= 1
        self._do(self._left)
        return self._left < 0


class TestFullDisk:
    """A version that finds no room is not fetched anew at each look."""

    @pytest.fixture
    def full(self, there, made, bundles, monkeypatch):
        """A copy, on a disk that has no room for a third version; when it is tried."""
        made.start(0)
        made._sync_seconds = 5
        copy_bundle(bundles / "walks" / "1", there / "walks" / "2", version="2")
        copy, tried = made._copy, []

        def without_room(place, stamp):
            if self.room or place != "walks/2":
                return copy(place, stamp)
            tried.append(object_store.time.monotonic())
            raise OSError(ENOSPC, "No space left on device")

        self.room = False
        monkeypatch.setattr(made, "_copy", without_room)
        return tried

    def test_backs_off(self, made, full, monkeypatch, caplog):
        """It is tried after twice as long each time, five minutes at most, and each
        failure says when again."""
        Clock(made, monkeypatch, looks=360)  # half an hour, each 5 s
        made._sync_repeatedly(5)
        waits = [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
        assert [after - before for before, after in itertools.pairwise(full)] == waits
        told = [one for one in caplog.records if one.message == "bundle not copied"]
        assert [one.retry_seconds for one in told] == [*waits, 300]
        assert {one.reason for one in told} == {"[Errno 28] No space left on device"}

    def test_room(self, made, full, monkeypatch):
        """When there is room again it is taken over at the next try."""
        clock = Clock(made, monkeypatch, 0)
        for look in range(9):
            clock.now, self.room = 5.0 * look, look > 3
            with contextlib.suppress(OSError):
                made.sync()
            assert (("walks", 2) in served(made)) == (look > 6)
        assert len(full) == 3
        assert not made._failed

    @pytest.mark.parametrize("change", ["itself", "another"])
    def test_changed(self, there, made, full, monkeypatch, change):
        """It is tried at once when it has changed, or when another has gone."""

        def do(left):
            if left == 10 and change == "another":
                shutil.rmtree(there / "tags")
            elif left == 10:
                (there / "walks" / "2" / "more").touch()

        Clock(made, monkeypatch, 50, do)
        made._sync_repeatedly(5)
        assert [at / 5 for at in full] == [1, 2, 4, 8, 16, 32, 40, 41, 43, 47]


@pytest.mark.parametrize("up", ["../" * 3, "a/../" + "../" * 3, "/"])
def test_leads_out(made, up):
    """An object is written within the copy's folder, or nowhere."""
    name = f"walks/1/{up}written-outside"
    made._filesystem = Store(made._filesystem, made._root, name)
    made.start(0)
    assert served(made).keys() == {("walks", 1), ("tags", 1)}
    around = (made.folder, *made.folder.parents)
    assert not any((folder / "written-outside").exists() for folder in around)


def test_too_much(there, made, monkeypatch):
    """A version of more bytes than a bundle may have is not copied."""
    monkeypatch.setattr(object_store, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="too large"):
        made.start(0)
    assert not list(made.folder.glob("*/*/*"))


def test_closed_while_it_copies(there, made, monkeypatch):
    """Nothing is left of a copy that is under way when it is closed."""
    monkeypatch.setattr(object_store, "JOIN_SECONDS", 0.1)
    begun, go, copy = threading.Event(), threading.Event(), made._copy

    def slowly(*given):
        begun.set()
        assert go.wait(SECONDS)
        copy(*given)

    made.start(0.05)
    monkeypatch.setattr(made, "_copy", slowly)
    (there / "walks" / "labels.json").write_text('{"stable": 1}')
    assert begun.wait(SECONDS)
    made.close()
    go.set()
    made._thread.join(SECONDS)
    assert not made.folder.exists()


def test_shown():
    """A key that stands in an address is not."""
    assert (
        object_store.without_credentials("s3://me:secret@bucket/a") == "s3://bucket/a"
    )
    assert object_store.without_credentials("s3://bucket/a@b") == "s3://bucket/a@b"


@pytest.mark.parametrize("place", ["s3://bucket/a", "gs://bucket", "file:///a/b"])
def test_elsewhere(place):
    assert object_store.is_remote(place)


@pytest.mark.parametrize("place", ["", "/a/b", "bundles", "C:/bundles", "a:b"])
def test_here(place):
    assert not object_store.is_remote(place)
