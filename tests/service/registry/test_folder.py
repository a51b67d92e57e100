"""What lies in the folder of bundles: which names, versions and labels are found."""

import json
import os
import shutil

import pytest

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service.registry import folder as repository
from service.registry.folder import VersionFolder


def lay(folder, *versions):
    """Folders of versions, as far as a scan looks into them."""
    for version in versions:
        marker = folder / str(version) / bundle.MARKER
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")
    return folder


def label(folder, content):
    """Write `labels.json`: bytes as they stand, others as JSON."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / repository.LABELS).write_bytes(text)


class TestScan:
    def test_names_and_versions(self, tmp_path):
        """Every name is found in the order of the alphabet, with its versions by
        number and not by letter; what is called otherwise is nothing."""
        lay(tmp_path / "walks", 2, 10, 9, 1)
        lay(tmp_path / "tags", 3)
        for name in ("0", "01", "-1", "v4", ".5", "latest", "1234567890"):
            (tmp_path / "walks" / name).mkdir()
        (tmp_path / "walks" / "7").write_text("a file")
        (tmp_path / "walks" / repository.LABELS).write_text("{}")
        (tmp_path / "empty").mkdir()
        (tmp_path / "README.md").write_text("a file")
        tags, walks = repository.scan(tmp_path)
        assert (tags.name, [*tags.versions]) == ("tags", [3])
        assert (walks.name, [*walks.versions]) == ("walks", [1, 2, 9, 10])
        assert walks.versions[10] == tmp_path / "walks" / "10"
        assert walks.folder == tmp_path / "walks"

    def test_folder_of_a_name(self, tmp_path):
        """The folder may be that of one name's versions, with its labels."""
        (shelf,) = repository.scan(lay(tmp_path / "walks", 1, 2))
        assert (shelf.name, [*shelf.versions]) == ("walks", [1, 2])
        assert shelf.folder == tmp_path / "walks"

    def test_one_bundle(self, tmp_path):
        """The folder may be one bundle, whatever it is called: it has no labels."""
        lay(tmp_path / "walks", "mine")
        (shelf,) = repository.scan(tmp_path / "walks" / "mine")
        assert shelf.name == "walks"
        assert shelf.versions == {0: tmp_path / "walks" / "mine"}
        assert shelf.folder is None
        assert shelf.number(tmp_path / "walks" / "mine") == 0

    @pytest.mark.parametrize("kind", ["empty", "missing", "file"])
    def test_nothing(self, tmp_path, kind):
        """Where there is no bundle none is found, and nothing fails."""
        root = tmp_path / "root"
        if kind == "empty":
            root.mkdir()
        elif kind == "file":
            root.write_text("")
        assert repository.scan(root) == []

    def test_links(self, tmp_path):
        """A version may be a link, also one that leads nowhere: reading it tells."""
        lay(tmp_path / "walks", 1)
        (tmp_path / "walks" / "2").symlink_to(tmp_path / "walks" / "1")
        (tmp_path / "walks" / "3").symlink_to(tmp_path / "nowhere")
        (shelf,) = repository.scan(tmp_path)
        assert [*shelf.versions] == [1, 2, 3]

    def test_number(self, tmp_path):
        """A folder is known by its version."""
        (shelf,) = repository.scan(lay(tmp_path / "walks", 1, 12))
        assert shelf.number(tmp_path / "walks" / "12") == 12


WANTED = [
    pytest.param(1, {}, [9], id="newest"),
    pytest.param(2, {}, [3, 9], id="two"),
    pytest.param(0, {}, [1, 2, 3, 9], id="all"),
    pytest.param(7, {}, [1, 2, 3, 9], id="more-than-there-are"),
    pytest.param(1, {"stable": 2}, [2, 9], id="with-a-label"),
    pytest.param(1, {"stable": 9}, [9], id="label-of-the-newest"),
    pytest.param(2, {"a": 1, "b": 1, "c": 3}, [1, 3, 9], id="several-labels"),
    pytest.param(0, {"stable": 1}, [1, 2, 3, 9], id="all-and-a-label"),
]


@pytest.mark.parametrize(("keep", "labels", "expected"), WANTED)
def test_wanted(tmp_path, keep, labels, expected):
    """The newest versions are served, and each that has a label, lowest first."""
    (shelf,) = repository.scan(lay(tmp_path / "walks", 1, 2, 3, 9))
    found = [shelf.number(folder) for folder in shelf.select(keep, labels.values())]
    assert found == expected


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_one_bundle_is_wanted(tmp_path, keep):
    """One bundle alone is served, however many versions are kept."""
    assert VersionFolder("walks", {0: tmp_path}).select(keep, {}) == [tmp_path]


def wrong(id, content, *said):
    return pytest.param(content, said, id=id)


MANY = {f"label-{number}": 1 for number in range(65)}
WRONG = [
    wrong("empty", b""),
    wrong("no-json", b"{stable: 1}"),
    wrong("half", b'{"stable": 1'),
    wrong("two", b'{"stable": 1} {}'),
    wrong("list", [["stable", 1]]),
    wrong("null", None),
    wrong("version-as-text", {"stable": "1"}, "int"),
    wrong("version-as-float", b'{"stable": 1.0}', "int"),
    wrong("version-as-bool", {"stable": True}, "int"),
    wrong("version-null", {"stable": None}, "int"),
    wrong("nested", b'{"a":' * 5_000, "int"),
    wrong("long-number", b'{"a":' + b"9" * 5_000 + b"}"),
    wrong("latest", {"latest": 1}, "latest"),
    wrong("empty-name", {"": 1}, "label"),
    wrong("digits", {"1": 1}, "'1'"),
    wrong("digit-first", {"1st": 1}, "'1st'"),
    wrong("capital", {"Stable": 1}, "'Stable'"),
    wrong("dot", {"v1.2": 1}, "'v1.2'"),
    wrong("at", {"a@b": 1}, "'a@b'"),
    wrong("slash", {"a/b": 1}, "'a/b'"),
    wrong("line", {"stable\n": 1}, "label"),
    wrong("umlaut", {"stäbil": 1}, "label"),
    wrong("33-letters", {"a" * 33: 1}, "label"),
    wrong("65", MANY, "64 labels"),
    wrong(
        "not-there", {"stable": 1, "canary": 3}, "canary", "3", "there is no version"
    ),
    wrong("zero", {"stable": 0}, "there is no version"),
    wrong("negative", {"stable": -1}, "there is no version"),
    wrong("beyond-any-int", {"stable": 10**30}, "there is no version"),
    wrong("no-text", b"\xff\xfe"),
    pytest.param(
        b'{"stabl\xff": 1}',
        (),
        id="no-text-in-a-label",
    ),
]


class TestLabels:
    @pytest.fixture
    def folder(self, tmp_path):
        return lay(tmp_path / "walks", 1, 2)

    def test_none(self, folder):
        """Without the file there are no labels."""
        assert repository.read_labels(folder) == {}

    def test_read(self, folder):
        """Labels are read as they stand; `default` is one of them."""
        given = {"default": 1, "stable": 1, "canary": 2, "a": 2, "b-2_c": 1}
        label(folder, given)
        assert repository.read_labels(folder) == given

    def test_most(self, folder):
        """As many as 64 labels of 32 characters may be there."""
        given = {f"{'a' * 30}{number:02}": 1 for number in range(64)}
        label(folder, given)
        assert repository.read_labels(folder) == given

    @pytest.mark.parametrize(("content", "said"), WRONG)
    def test_wrong(self, folder, content, said):
        """What can't be labels is refused as broken, with the file's name and what is
        wrong, whatever bytes it holds."""
        label(folder, content)
        with pytest.raises(BundleError) as caught:
            repository.read_labels(folder)
        assert str(folder / repository.LABELS) in str(caught.value)
        for part in said:
            assert part in str(caught.value)

    def test_folder_in_its_place(self, folder):
        """So is a folder in the file's place."""
        (folder / repository.LABELS).mkdir()
        with pytest.raises(BundleError, match=repository.LABELS):
            repository.read_labels(folder)


def grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def touch(path):
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def replace(path):
    """Another file of that size and time in its place."""
    about, other = path.stat(), path.with_name("other")
    other.write_bytes(bytes(about.st_size))
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.rename(path)


CHANGES = [
    pytest.param(grow, id="size"),
    pytest.param(touch, id="time"),
    pytest.param(replace, id="another-file"),
    pytest.param(lambda path: path.unlink(), id="removed"),
    pytest.param(lambda path: path.with_name("new").touch(), id="added"),
    pytest.param(lambda path: path.with_name(".new").touch(), id="hidden-one-added"),
    pytest.param(lambda path: path.rename(path.with_name("new")), id="renamed"),
    pytest.param(lambda path: shutil.rmtree(path.parent), id="folder-removed"),
]


class TestStamp:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = lay(tmp_path, 1) / "1"
        (folder / "saved_model.pb").write_bytes(b"network")
        return folder

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("file", [bundle.MARKER, "saved_model.pb"])
    def test_changes(self, folder, change, file):
        """Whatever happens to a file, also one further down, changes the stamp."""
        before = repository.stamp(folder)
        change(folder / file)
        assert repository.stamp(folder) != before

    def test_stays(self, folder):
        """To read the files, and to look twice, changes nothing."""
        before = repository.stamp(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()
        (folder.parent / "2").mkdir()  # another version
        assert repository.stamp(folder) == before
        assert hash(repository.stamp(folder)) == hash(before)

    def test_nothing_there(self, tmp_path):
        """A folder that is gone, and links that lead nowhere, are no failure."""
        before = repository.stamp(tmp_path / "gone")
        lay(tmp_path, "gone")
        assert repository.stamp(tmp_path / "gone") != before
        (tmp_path / "gone" / "link").symlink_to(tmp_path / "nowhere")
        repository.stamp(tmp_path / "gone")
