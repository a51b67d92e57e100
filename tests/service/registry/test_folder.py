"""The folder of bundles: its names, versions and labels."""

import json
import os
import shutil
from pathlib import Path

import pytest

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service.registry import folder as bundle_folder
from service.registry.folder import VersionFolder


def make_versions(folder, *versions):
    """Folders of versions, as far as a scan reads them."""
    for version in versions:
        marker = folder / str(version) / bundle.MARKER
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")
    return folder


def label(folder, content):
    """Write `labels.json`: bytes unchanged, other content as JSON."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / bundle_folder.LABELS).write_bytes(text)


class TestScan:
    def test_names_and_versions(self, tmp_path):
        """Names are in alphabetical order, their versions in numerical order; other files and
        folders are ignored."""
        make_versions(tmp_path / "walks", 2, 10, 9, 1)
        make_versions(tmp_path / "tags", 3)
        for name in ("0", "01", "-1", "v4", ".5", "latest", "1234567890"):
            (tmp_path / "walks" / name).mkdir()
        (tmp_path / "walks" / "7").write_text("a file")
        (tmp_path / "walks" / bundle_folder.LABELS).write_text("{}")
        (tmp_path / "empty").mkdir()
        (tmp_path / "README.md").write_text("a file")
        tags, walks = bundle_folder.scan(tmp_path)
        assert (tags.name, [*tags.versions]) == ("tags", [3])
        assert (walks.name, [*walks.versions]) == ("walks", [1, 2, 9, 10])
        assert walks.versions[10] == tmp_path / "walks" / "10"
        assert walks.folder == tmp_path / "walks"

    def test_folder_of_a_name(self, tmp_path):
        """The folder may be that of one name's versions, with its labels."""
        (versions,) = bundle_folder.scan(make_versions(tmp_path / "walks", 1, 2))
        assert (versions.name, [*versions.versions]) == ("walks", [1, 2])
        assert versions.folder == tmp_path / "walks"

    def test_one_bundle(self, tmp_path):
        """The folder may be a single bundle of any name, without labels."""
        make_versions(tmp_path / "walks", "mine")
        (versions,) = bundle_folder.scan(tmp_path / "walks" / "mine")
        assert versions.name == "walks"
        assert versions.versions == {0: tmp_path / "walks" / "mine"}
        assert versions.folder is None
        assert versions.number(tmp_path / "walks" / "mine") == 0

    @pytest.mark.parametrize("kind", ["empty", "missing", "file"])
    def test_nothing(self, tmp_path, kind):
        """Without any bundle the scan is empty."""
        root = tmp_path / "root"
        if kind == "empty":
            root.mkdir()
        elif kind == "file":
            root.write_text("")
        assert bundle_folder.scan(root) == []

    def test_links(self, tmp_path):
        """A version may be a link, even a dangling one, which fails when it is read."""
        make_versions(tmp_path / "walks", 1)
        (tmp_path / "walks" / "2").symlink_to(tmp_path / "walks" / "1")
        (tmp_path / "walks" / "3").symlink_to(tmp_path / "nowhere")
        (versions,) = bundle_folder.scan(tmp_path)
        assert [*versions.versions] == [1, 2, 3]

    def test_number(self, tmp_path):
        """A folder's number is its version."""
        (versions,) = bundle_folder.scan(make_versions(tmp_path / "walks", 1, 12))
        assert versions.number(tmp_path / "walks" / "12") == 12


def test_select(tmp_path):
    """The newest versions are served, and each that has a label, lowest first; a single
    bundle always."""
    (versions,) = bundle_folder.scan(make_versions(tmp_path / "walks", 1, 2, 3, 9))
    for newest, labels, expected in (
        (1, {}, [9]),
        (2, {}, [3, 9]),
        (0, {}, [1, 2, 3, 9]),
        (7, {}, [1, 2, 3, 9]),
        (1, {"stable": 2}, [2, 9]),
        (1, {"stable": 9}, [9]),
        (2, {"a": 1, "b": 1, "c": 3}, [1, 3, 9]),
        (0, {"stable": 1}, [1, 2, 3, 9]),
    ):
        paths = versions.select(newest, labels.values())
        assert [versions.number(path) for path in paths] == expected
        assert VersionFolder("walks", {0: tmp_path}).select(newest, {}) == [tmp_path]


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


class TestLabels:
    @pytest.fixture
    def folder(self, tmp_path):
        return make_versions(tmp_path / "walks", 1, 2)

    def test_none(self, folder):
        """Without the file there are no labels."""
        assert bundle_folder.read_labels(folder) == {}

    def test_read(self, folder):
        """All labels are read, `default` among them."""
        labels = {"default": 1, "stable": 1, "next": 2, "a": 2, "b-2_c": 1}
        label(folder, labels)
        assert bundle_folder.read_labels(folder) == labels

    def test_most(self, folder):
        """64 labels of 32 characters are allowed."""
        labels = {f"{'a' * 30}{number:02}": 1 for number in range(64)}
        label(folder, labels)
        assert bundle_folder.read_labels(folder) == labels

    def test_invalid(self, folder):
        """Invalid labels are an error that names the file and the reason."""
        for content, *messages in INVALID:
            label(folder, content)
            with pytest.raises(BundleError) as caught:
                bundle_folder.read_labels(folder)
            for message in (str(folder / bundle_folder.LABELS), *messages):
                assert message in str(caught.value), content

    def test_folder_in_its_place(self, folder):
        """So is a folder in the place of the file."""
        (folder / bundle_folder.LABELS).mkdir()
        with pytest.raises(BundleError, match=bundle_folder.LABELS):
            bundle_folder.read_labels(folder)


def grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def touch(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path):
    """Put another file of the same size and time in its place."""
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


CHANGES = [
    grow,
    touch,
    replace,
    lambda path: path.unlink(),
    lambda path: path.with_name("new").touch(),
    lambda path: path.with_name(".new").touch(),
    lambda path: path.rename(path.with_name("new")),
    lambda path: shutil.rmtree(path.parent),
]


class TestStamp:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = make_versions(tmp_path, 1) / "1"
        (folder / "saved_model.pb").write_bytes(b"network")
        return folder

    def test_changes(self, tmp_path):
        """Any change of a file, also of a nested one, changes the stamp."""
        for number, change in enumerate(CHANGES):
            for file in (bundle.MARKER, "saved_model.pb"):
                folder = (
                    make_versions(tmp_path / f"{number}-{Path(file).stem}", 1) / "1"
                )
                (folder / "saved_model.pb").write_bytes(b"network")
                before = bundle_folder.stamp(folder)
                change(folder / file)
                assert bundle_folder.stamp(folder) != before

    def test_stays(self, folder):
        """Reading the files, or making the stamp, does not change it."""
        before = bundle_folder.stamp(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()
        (folder.parent / "2").mkdir()  # another version
        assert bundle_folder.stamp(folder) == before
        assert hash(bundle_folder.stamp(folder)) == hash(before)

    def test_nothing_there(self, tmp_path):
        """A missing folder, and dangling links, are no failure."""
        before = bundle_folder.stamp(tmp_path / "gone")
        make_versions(tmp_path, "gone")
        assert bundle_folder.stamp(tmp_path / "gone") != before
        (tmp_path / "gone" / "link").symlink_to(tmp_path / "nowhere")
        bundle_folder.stamp(tmp_path / "gone")
