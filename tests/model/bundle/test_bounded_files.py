"""Files that a stranger may have written can't block, fill memory or leak others."""

import errno
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from model.bundle import bundle, folders, labels, signature
from model.bundle.bundle import BundleError
from service.registry.load_errors import LoadErrors
from service.registry.stamp import stamp_of
from tests.support.bundles import CARD, VOWELS, within


def make_socket(path):
    """Create a socket's file; its whole path may be too long for an address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{folder}/s")
        shutil.move(f"{folder}/s", path)


SPECIAL_FILES = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "link-to-folder": lambda path: path.symlink_to("/proc"),
}


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


special_files = pytest.mark.parametrize(
    "make", SPECIAL_FILES.values(), ids=SPECIAL_FILES.keys()
)


@special_files
class TestSpecialFiles:
    """Anything but a regular file is refused at once, and named."""

    def test_read(self, copy, make):
        """A special file in place of a bundle's file, when the bundle is read."""
        for place in (bundle.NETWORK, CARD, bundle.MARKER):
            (copy / place).rename(copy.parent / "original")
            make(copy / place)
            with pytest.raises(BundleError) as caught:
                within(lambda: bundle.read(copy))
            # An empty folder counts as a missing file.
            reasons = ("is not a regular file", "missing file")
            assert str(caught.value).removeprefix(f"{copy / place}: ") in reasons
            remove(copy / place)
            (copy.parent / "original").rename(copy / place)

    def test_signature(self, copy, tmp_path, make):
        """A special file in place of the signature."""
        key = signature.generate(tmp_path / "key")
        make(copy / bundle.SIGNATURE)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: bundle.read(copy, key))
        assert str(copy / bundle.SIGNATURE) in str(caught.value)

    def test_content(self, copy, make):
        """A special file that replaces a file after the bundle was read."""
        verified = bundle.read(copy)
        (copy / bundle.NETWORK).unlink()
        make(copy / bundle.NETWORK)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: verified.content(bundle.NETWORK.as_posix()))
        assert str(copy / bundle.NETWORK) in str(caught.value)

    def test_labels(self, copy, make):
        """A special file in place of the labels."""
        make(copy.parent / labels.LABELS)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: labels.read(copy.parent))
        assert str(copy.parent / labels.LABELS) in str(caught.value)


class TestFiles:
    def test_links(self, copy, tmp_path):
        """A link to a regular file is accepted; some volumes consist of links."""
        for place in (bundle.MARKER, CARD):
            (copy / place).rename(tmp_path / Path(place).name)
            (copy / place).symlink_to(tmp_path / Path(place).name)
        assert bundle.read(copy).content(CARD).startswith(b"# vowels")

    def test_longer_than_its_size(self, copy):
        """A link to a file of /proc, which claims to be empty, is refused."""
        (copy / CARD).unlink()
        (copy / CARD).symlink_to("/proc/self/environ")
        with pytest.raises(BundleError, match="has changed while it was read"):
            bundle.read(copy)

    def test_unlisted(self, copy):
        """A file that is not listed is never opened."""
        os.mkfifo(copy / "more")
        verified = bundle.Bundle(copy, bundle.read(VOWELS).metadata, "")
        for name in ("more", "../../../etc/passwd", bundle.MARKER.as_posix()):
            with pytest.raises(BundleError, match="is not listed"):
                within(lambda name=name: verified.content(name))

    @pytest.mark.parametrize(
        ("place", "max_bytes"),
        [
            pytest.param(bundle.MARKER, bundle.MAX_MARKER, id="marker"),
            pytest.param(bundle.SIGNATURE, signature.MAX_BYTES, id="signature"),
            pytest.param(CARD, bundle.MAX_BYTES, id="any"),
        ],
    )
    def test_too_large(self, copy, tmp_path, place, max_bytes):
        """A file over its size limit is refused before it is read."""
        key = None
        if place == bundle.SIGNATURE:
            key = signature.generate(tmp_path / "key")
        with (copy / place).open("ab") as file:
            file.truncate(max_bytes + 1)  # sparse: it takes no space
        with pytest.raises(BundleError, match=f"than {max_bytes:,} bytes"):
            within(lambda: bundle.read(copy, key))

    def test_marker_at_its_limit(self, copy):
        """A `bundle.json` at its size limit is read."""
        with (copy / bundle.MARKER).open("a") as file:
            file.write(" " * (bundle.MAX_MARKER - file.tell()))
        bundle.read(copy)

    def test_large_labels(self, copy):
        """Labels are read up to their size limit."""
        path = copy.parent / labels.LABELS
        text = json.dumps({"stable": 1})
        path.write_text(text + " " * (labels.MAX_LABELS_BYTES - len(text)))
        assert labels.read(copy.parent) == {"stable": 1}
        path.write_text(path.read_text() + " ")
        with pytest.raises(BundleError, match="is larger than 65,536 bytes"):
            labels.read(copy.parent)


class TestFolders:
    @pytest.mark.parametrize("kind", ["files", "deep", "link-to-everything"])
    def test_too_many(self, tmp_path, kind):
        """A folder with far too many entries is refused early."""
        folder = tmp_path / "made" / "1"
        if kind == "link-to-everything":
            folder.parent.mkdir()
            folder.symlink_to("/")
        elif kind == "files":
            folder.mkdir(parents=True)
            for number in range(bundle.MAX_ENTRIES + 1):
                (folder / str(number)).touch()
        else:
            inner = folder
            inner.mkdir(parents=True)
            for _ in range(5):
                inner = inner / "x" / "y"
                for number in range(bundle.MAX_ENTRIES // 5):
                    (inner / str(number)).mkdir(parents=True)
        with pytest.raises(BundleError, match=r"1: has more than 1,000 entries"):
            within(lambda: bundle.read(folder))
        before = within(lambda: stamp_of(folder))
        assert hash(before) == hash(within(lambda: stamp_of(folder)))

    def test_deep(self, copy):
        """A path that is too long for the system is refused."""
        parent = os.open(copy, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("x" * 250, dir_fd=parent)
            inner = os.open("x" * 250, os.O_RDONLY, dir_fd=parent)
            os.close(parent)
            parent = inner
        os.close(parent)
        with pytest.raises(BundleError, match=os.strerror(errno.ENAMETOOLONG)):
            bundle.read(copy)
        stamp_of(copy)

    def test_links_are_not_followed(self, copy):
        """A link to a folder is not followed."""
        before = stamp_of(copy)
        (copy / "loop").symlink_to(copy)
        with pytest.raises(BundleError, match="loop: unexpected file"):
            bundle.read(copy)
        assert len(stamp_of(copy)) == len(before) + 1

    def test_many_names(self, tmp_path, monkeypatch):
        """A folder with too many names or versions is unreadable; others are found."""
        monkeypatch.setattr(bundle, "MAX_LISTED", 20)
        (tmp_path / "good" / "1").mkdir(parents=True)
        for number in range(1, 22):
            (tmp_path / "many" / str(number)).mkdir(parents=True)
        good, many = folders.scan(tmp_path)
        assert (good.name, [*good.versions]) == ("good", [1])
        assert (many.name, many.versions) == ("many", {0: tmp_path / "many"})
        for number in range(20):
            (tmp_path / f"n{number}").mkdir()
        with pytest.raises(OSError, match="more than 20 entries"):
            folders.scan(tmp_path)

    def test_names_that_are_not_text(self, tmp_path):
        """Names that are not valid text are found, and shown with escapes."""
        name = os.fsdecode(b"caf\xe9")
        (tmp_path / name / "1").mkdir(parents=True)
        (entry,) = folders.scan(tmp_path)
        assert entry.name == "caf\\udce9"
        assert entry.versions == {1: tmp_path / name / "1"}

    def test_long_reason(self, copy):
        """The reason of a broken bundle is cut to 1,000 characters."""
        marker = copy / bundle.MARKER
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"x" * 2**20: 1}))
        errors = LoadErrors()
        with pytest.raises(BundleError) as caught:
            bundle.read(copy)
        errors.set("vowels", copy, str(caught.value))
        (reason,) = errors.of_folder("vowels")
        assert reason.startswith(f"{marker}: xxx")
        assert len(reason) == 1000

    def test_permissions(self, copy):
        """Other permissions change the stamp, so that the bundle is read again."""
        before = stamp_of(copy)
        (copy / CARD).chmod(0o600)
        assert stamp_of(copy) != before
