"""Folders of bundles: their names and versions, and what is served of them."""

import pytest

from model.bundle import bundle, folders
from model.bundle.folders import VersionFolder
from model.bundle.labels import LABELS
from tests.support.versions import make_versions


class TestScan:
    def test_names_and_versions(self, tmp_path):
        """Names are in alphabetical order, their versions in numerical order; other files and
        folders are ignored."""
        make_versions(tmp_path / "walks", 2, 10, 9, 1)
        make_versions(tmp_path / "tags", 3)
        for name in ("0", "01", "-1", "v4", ".5", "latest", "1234567890"):
            (tmp_path / "walks" / name).mkdir()
        (tmp_path / "walks" / "7").write_text("a file")
        (tmp_path / "walks" / LABELS).write_text("{}")
        (tmp_path / "empty").mkdir()
        (tmp_path / "README.md").write_text("a file")
        tags, walks = folders.scan(tmp_path)
        assert (tags.name, [*tags.versions]) == ("tags", [3])
        assert (walks.name, [*walks.versions]) == ("walks", [1, 2, 9, 10])
        assert walks.versions[10] == tmp_path / "walks" / "10"
        assert walks.folders == (tmp_path / "walks",)

    def test_folder_of_a_name(self, tmp_path):
        """The folder may be that of one name's versions, with its labels."""
        (versions,) = folders.scan(make_versions(tmp_path / "walks", 1, 2))
        assert (versions.name, [*versions.versions]) == ("walks", [1, 2])
        assert versions.folders == (tmp_path / "walks",)

    def test_one_bundle(self, tmp_path):
        """The folder may be a single bundle of any name, without labels."""
        make_versions(tmp_path / "walks", "mine")
        (versions,) = folders.scan(tmp_path / "walks" / "mine")
        assert versions.name == "walks"
        assert versions.versions == {0: tmp_path / "walks" / "mine"}
        assert versions.folders == ()
        assert versions.number(tmp_path / "walks" / "mine") == 0

    @pytest.mark.parametrize("kind", ["empty", "missing", "file"])
    def test_nothing(self, tmp_path, kind):
        """Without any bundle the scan is empty."""
        root = tmp_path / "root"
        if kind == "empty":
            root.mkdir()
        elif kind == "file":
            root.write_text("")
        assert folders.scan(root) == []

    def test_links(self, tmp_path):
        """A version may be a link, even a dangling one, which fails when it is read."""
        make_versions(tmp_path / "walks", 1)
        (tmp_path / "walks" / "2").symlink_to(tmp_path / "walks" / "1")
        (tmp_path / "walks" / "3").symlink_to(tmp_path / "nowhere")
        (versions,) = folders.scan(tmp_path)
        assert [*versions.versions] == [1, 2, 3]

    def test_number(self, tmp_path):
        """A folder's number is its version."""
        (versions,) = folders.scan(make_versions(tmp_path / "walks", 1, 12))
        assert versions.number(tmp_path / "walks" / "12") == 12


class TestSeveral:
    """Several folders are served as one."""

    def entries(self, *roots):
        return {entry.name: entry for entry in folders.scan(*roots)}

    def test_merged(self, tmp_path):
        """The versions of a name are those of all folders; of equal ones the later
        folder's counts. Names are in the order of the folders."""
        first, second = tmp_path / "first", tmp_path / "second"
        make_versions(first / "walks", 1, 2)
        make_versions(first / "zebras", 1)
        make_versions(second / "walks", 2, 10)
        make_versions(second / "ants", 1)
        entries = self.entries(first, second)
        assert [*entries] == ["walks", "zebras", "ants"]
        walks = entries["walks"]
        assert walks.versions == {
            1: first / "walks" / "1",
            2: second / "walks" / "2",
            10: second / "walks" / "10",
        }
        for name, entry in entries.items():  # the last may get labels
            assert entry.folders == (first / name, second / name)

    def test_missing(self, tmp_path):
        """A folder may be missing, and appear later."""
        make_versions(tmp_path / "first" / "walks", 1)
        roots = (tmp_path / "first", tmp_path / "second")
        assert [*self.entries(*roots)["walks"].versions] == [1]
        make_versions(tmp_path / "second" / "walks", 2)
        assert [*self.entries(*roots)["walks"].versions] == [1, 2]

    def test_folder_of_a_name(self, tmp_path):
        """A folder of one name's versions joins them, and gets no other names."""
        make_versions(tmp_path / "first" / "walks", 1)
        make_versions(tmp_path / "first" / "tags", 1)
        single = make_versions(tmp_path / "walks", 2)
        entries = self.entries(tmp_path / "first", single)
        assert [*entries["walks"].versions] == [1, 2]
        assert entries["walks"].folders == (tmp_path / "first" / "walks", single)
        assert entries["tags"].folders == (tmp_path / "first" / "tags",)

    def test_single_bundle(self, tmp_path):
        """A single bundle replaces its name's versions in the folders before it."""
        single = make_versions(tmp_path / "one" / "walks", "mine") / "mine"
        many = tmp_path / "many"
        make_versions(many / "walks", 1, 2)
        make_versions(many / "tags", 1)
        entries = self.entries(many, single)
        assert (entries["walks"].versions, entries["walks"].folders) == (
            {0: single},
            (),
        )
        assert [*entries["tags"].versions] == [1]
        assert [*self.entries(single, many)["walks"].versions] == [1, 2]

    def test_unreadable(self, tmp_path, monkeypatch):
        """If a name can't be listed in one folder, its versions in others are found."""
        make_versions(tmp_path / "first" / "walks", 1)
        make_versions(tmp_path / "second" / "walks", 1, 2, 3)
        monkeypatch.setattr(bundle, "MAX_LISTED", 2)
        first, second = tmp_path / "first", tmp_path / "second"
        for roots in ((first, second), (second, first)):
            entry = self.entries(*roots)["walks"]
            assert entry.versions == {1: first / "walks" / "1"}
            assert set(entry.folders) == {first / "walks", second / "walks"}
        assert self.entries(second)["walks"].versions == {0: second / "walks"}


class TestOutput:
    """The folders that a new version in a folder is served with."""

    @pytest.fixture
    def defaults(self, tmp_path, monkeypatch):
        shipped, trained = tmp_path / "shipped", tmp_path / "trained"
        monkeypatch.setattr(folders, "DEFAULTS", (shipped, trained))
        make_versions(shipped / "walks", 1, 4)
        make_versions(trained / "walks", 2)
        return shipped, trained

    def test_trained(self, defaults):
        """A version in `trained` is served with the shipped ones, and the next number
        is higher than any of theirs."""
        shipped, trained = defaults
        expected = [shipped / "walks", trained / "walks"]
        assert folders.of_name("walks", trained) == expected
        assert folders.highest_version("walks", trained) == 4
        assert folders.highest_version("tags", trained) == 0

    def test_shipped(self, defaults):
        """So is the number of a version beside the shipped ones."""
        shipped, trained = defaults
        make_versions(trained / "walks", 7)
        assert folders.of_name("walks", shipped) == [shipped / "walks"]
        assert folders.highest_version("walks", shipped) == 7

    def test_elsewhere(self, defaults, tmp_path):
        """Any other folder is served alone."""
        other = tmp_path / "other"
        make_versions(other / "walks", 3)
        assert folders.of_name("walks", other) == [other / "walks"]
        assert folders.highest_version("walks", other) == 3


def test_select(tmp_path):
    """The newest versions up to the default are served, and each that has a label,
    lowest first; a single bundle always."""
    (versions,) = folders.scan(make_versions(tmp_path / "walks", 1, 2, 3, 9))
    for newest, labels, expected in (
        (1, {}, [9]),
        (2, {}, [3, 9]),
        (0, {}, [1, 2, 3, 9]),
        (7, {}, [1, 2, 3, 9]),
        (1, {"stable": 2}, [2, 9]),
        (1, {"stable": 9}, [9]),
        (2, {"a": 1, "b": 1, "c": 3}, [1, 3, 9]),
        (0, {"stable": 1}, [1, 2, 3, 9]),
        (1, {"default": 2}, [2]),
        (2, {"default": 3}, [2, 3]),
        (0, {"default": 2}, [1, 2]),
        (1, {"default": 2, "next": 9}, [2, 9]),
    ):
        paths = versions.select(newest, labels.values(), labels.get("default"))
        assert [versions.number(path) for path in paths] == expected
        assert VersionFolder("walks", {0: tmp_path}).select(newest, {}) == [tmp_path]
