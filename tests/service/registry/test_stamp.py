"""A bundle's stamp changes with its files."""

import os
import shutil
from pathlib import Path

import pytest

from model.bundle import bundle
from service.registry.stamp import stamp_of
from tests.support.versions import make_versions


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
                before = stamp_of(folder)
                change(folder / file)
                assert stamp_of(folder) != before

    def test_stays(self, folder):
        """Reading the files, or making the stamp, does not change it."""
        before = stamp_of(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()
        (folder.parent / "2").mkdir()  # another version
        assert stamp_of(folder) == before
        assert hash(stamp_of(folder)) == hash(before)

    def test_nothing_there(self, tmp_path):
        """A missing folder, and dangling links, are no failure."""
        before = stamp_of(tmp_path / "gone")
        make_versions(tmp_path, "gone")
        assert stamp_of(tmp_path / "gone") != before
        (tmp_path / "gone" / "link").symlink_to(tmp_path / "nowhere")
        stamp_of(tmp_path / "gone")
