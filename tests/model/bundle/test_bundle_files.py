"""Bundles that a stranger may have written: they can't block, fill memory or leak files."""

import concurrent.futures
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model.bundle import bundle, golden, signature
from model.bundle.bundle import BundleError
from model.bundle.golden import Golden
from service.registry import folder as registry_folder
from service.registry.load_errors import LoadErrors
from tests.support.bundles import copy_bundle
from tests.support.servers import ROOT, SECONDS

VOWELS = ROOT / "bundles" / "vowels" / "1"
CARD = "assets.extra/report/card.md"


@pytest.fixture
def copy(tmp_path):
    """A copy of a bundle, to be changed."""
    return copy_bundle(VOWELS, tmp_path / "bundles" / "vowels" / "1")


def within(work, seconds=20):
    """Call `work` in a thread, and fail if it takes longer."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


# --- files -----------------------------------------------------------------------


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
        make(copy.parent / registry_folder.LABELS)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: registry_folder.read_labels(copy.parent))
        assert str(copy.parent / registry_folder.LABELS) in str(caught.value)


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
        for name in ("more", "../../../etc/passwd"):
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
        path = copy.parent / registry_folder.LABELS
        text = json.dumps({"stable": 1})
        path.write_text(text + " " * (registry_folder.MAX_LABELS_BYTES - len(text)))
        assert registry_folder.read_labels(copy.parent) == {"stable": 1}
        path.write_text(path.read_text() + " ")
        with pytest.raises(BundleError, match="is larger than 65,536 bytes"):
            registry_folder.read_labels(copy.parent)


# --- folders ---------------------------------------------------------------------


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
        before = within(lambda: registry_folder.stamp(folder))
        assert hash(before) == hash(within(lambda: registry_folder.stamp(folder)))

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
        registry_folder.stamp(copy)

    def test_links_are_not_followed(self, copy):
        """A link to a folder is not followed."""
        before = registry_folder.stamp(copy)
        (copy / "loop").symlink_to(copy)
        with pytest.raises(BundleError, match="loop: unexpected file"):
            bundle.read(copy)
        assert len(registry_folder.stamp(copy)) == len(before) + 1

    def test_many_names(self, tmp_path, monkeypatch):
        """A folder with too many names or versions is unreadable; others are found."""
        monkeypatch.setattr(bundle, "MAX_LISTED", 20)
        (tmp_path / "good" / "1").mkdir(parents=True)
        for number in range(1, 22):
            (tmp_path / "many" / str(number)).mkdir(parents=True)
        good, many = registry_folder.scan(tmp_path)
        assert (good.name, [*good.versions]) == ("good", [1])
        assert (many.name, many.versions) == ("many", {0: tmp_path / "many"})
        for number in range(20):
            (tmp_path / f"n{number}").mkdir()
        with pytest.raises(OSError, match="more than 20 entries"):
            registry_folder.scan(tmp_path)

    def test_names_that_are_not_text(self, tmp_path):
        """Names that are not valid text are found, and shown with escapes."""
        name = os.fsdecode(b"caf\xe9")
        (tmp_path / name / "1").mkdir(parents=True)
        (entry,) = registry_folder.scan(tmp_path)
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
        before = registry_folder.stamp(copy)
        (copy / CARD).chmod(0o600)
        assert registry_folder.stamp(copy) != before


# --- golden answers --------------------------------------------------------------


def save(path, change=lambda arrays: None, **more):
    """Write golden answers of two sequences, with changes."""
    arrays = {
        "frames": np.zeros((2, 3, 4), np.float32),
        "lengths": np.array([1, 3], np.int32),
        "probabilities": np.zeros((2, 5), np.float32),
        "state": np.zeros((2, 0), np.float32),
    }
    arrays |= more
    change(arrays)
    np.savez_compressed(path, **arrays)
    return path.read_bytes()


def empty(arrays):
    arrays.update({name: array[:0] for name, array in arrays.items()})


def declared(data, size):
    """The archive's directory says that all members have that size."""
    data, at = bytearray(data), 0
    while (at := data.find(golden.DIRECTORY_ENTRY, at)) >= 0:
        data[at + 24 : at + 28] = size.to_bytes(4, "little")
        at += 1
    return bytes(data)


def large_header(path):
    """An array of a few bytes whose header declares 4 TiB."""
    save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    state = parts["state.npy"].replace(b"(2, 0), }", b"(2, 549755813888), }", 1)
    parts["state.npy"] = state.replace(b" " * 11 + b"\n", b"\n")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return path.read_bytes()


def many_members(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(200):
            archive.writestr(str(number), b"")
    return path.read_bytes()


def lzma_compressed(path):
    save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return path.read_bytes()


F32, I32 = np.float32, np.int32
WRONG = {
    "no-archive": (lambda p: b"golden", "can't be read"),
    "cut": (lambda p: save(p)[:-30], "can't be read"),
    "too-large": (lambda p: declared(save(p), 2**25), "holds more than 67108864"),
    "lies": (
        lambda p: declared(save(p, state=np.zeros((2, 2**20), F32)), 2**10),
        "Bad CRC|not as long",
    ),
    "header": (large_header, "state.npy: is not as long as its shape says"),
    "members": (many_members, "64 members"),
    "packed": (lzma_compressed, "not compressed as NumPy"),
    "text": (lambda p: save(p, state=np.array([["a"], ["b"]])), "not numbers"),
    "no-rows": (lambda p: save(p, empty), "fit"),
    "rows": (lambda p: save(p, lengths=np.ones(3, I32)), "fit"),
    "flat": (lambda p: save(p, frames=np.zeros((2, 3), F32)), "fit"),
    "steps": (lambda p: save(p, probabilities=np.zeros((2, 4, 5), F32)), "fit"),
    "length-0": (lambda p: save(p, lengths=np.array([0, 3], I32)), "from 1 to 3"),
    "length-4": (lambda p: save(p, lengths=np.array([1, 4], I32)), "from 1 to 3"),
}


@pytest.mark.parametrize(
    "classes",
    [["a", "a"], ["a", ""], ["a", "b" * 100_000], list(map(str, range(20_000)))],
    ids=["alike", "empty", "long", "many"],
)
def test_classes(copy, classes):
    """Class names must be different, not empty and short enough to be shown."""
    marker = copy / bundle.MARKER
    text = json.loads(marker.read_text()) | {"classes": classes}
    marker.write_text(json.dumps(text))
    with pytest.raises(BundleError, match="class"):
        bundle.read(copy)


class TestGolden:
    @pytest.mark.parametrize(("make", "reason"), WRONG.values(), ids=WRONG.keys())
    def test_wrong(self, tmp_path, make, reason):
        """A file that is not golden answers is refused before it takes memory."""
        with pytest.raises(ValueError, match=reason):
            Golden.read(make(tmp_path / "golden.npz"))

    def test_right(self, tmp_path):
        """Valid golden answers are read, also in Fortran order."""
        frames = np.asfortranarray(np.arange(24, dtype=F32).reshape(2, 3, 4))
        answers = Golden.read(save(tmp_path / "golden.npz", frames=frames))
        np.testing.assert_array_equal(answers.frames, frames)

    def test_swapped(self, copy):
        """A file replaced after the bundle was read is refused."""
        verified = bundle.read(copy)
        verified.golden()
        save(copy / bundle.GOLDEN)
        with pytest.raises(BundleError, match=r"golden\.npz: SHA-256 differs"):
            verified.golden()

    def test_of_another_network(self):
        """The golden answers must have the sizes in `bundle.json`."""
        digits = bundle.read(ROOT / "bundles" / "digits" / "1")
        metadata = digits.metadata
        for changes in (
            {"input": metadata.input.model_copy(update={"features": 999})},
            {"classes": (*metadata.classes, "more")},
            {"state_size": 10**9},
            {"task": "label"},
        ):
            changed = metadata.model_copy(update=changes)
            with pytest.raises(BundleError, match="answers of another network"):
                bundle.Bundle(digits.folder, changed, digits.digest).golden()

    def test_too_many_to_export(self, tmp_path, monkeypatch):
        """Golden answers that `read` would refuse are not written."""
        monkeypatch.setattr(golden, "MAX_BYTES", 1000)
        many = np.zeros((2, 100, 4), F32)
        with pytest.raises(ValueError, match="holds more than 1000 bytes"):
            Golden(
                many, np.ones(2, I32), np.zeros((2, 5), F32), np.zeros((2, 0), F32)
            ).save(tmp_path / "golden.npz")


# --- writing ---------------------------------------------------------------------


class TestWriting:
    def test_concurrent(self, tmp_path):
        """Concurrent exports of one name get different numbers, and all are published."""
        all_write = threading.Barrier(4, timeout=SECONDS)

        def write(text):
            with bundle.writing(tmp_path, "made") as (folder, version):
                (folder / "file").write_text(text)
                all_write.wait()
            return version, text

        with ThreadPoolExecutor(4) as pool:
            written = dict(pool.map(write, "abcd"))
        assert sorted(written) == ["1", "2", "3", "4"]
        for version, text in written.items():
            assert (tmp_path / "made" / version / "file").read_text() == text
        assert bundle.versions(tmp_path / "made") == [1, 2, 3, 4]

    def test_killed(self, tmp_path):
        """A killed writer's number stays reserved, and its files are no version."""
        script = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from model import bundle\n"
            "with bundle.writing(Path(sys.argv[1]), 'made') as (folder, _):\n"
            "    (folder / 'saved_model.pb').touch()\n"
            "    print('writes', flush=True)\n"
            "    time.sleep(60)\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as killed:
            assert killed.stdout.readline() == b"writes\n"
            killed.kill()
        assert registry_folder.scan(tmp_path) == []
        for _ in range(2):
            with bundle.writing(tmp_path, "made") as (folder, version):
                (folder / "file").touch()
        assert version == "3"
        assert bundle.versions(tmp_path / "made") == [2, 3]

    def test_published_meanwhile(self, tmp_path, monkeypatch):
        """A version that appears after the folder was listed is kept."""
        (tmp_path / "made" / "1").mkdir(parents=True)
        monkeypatch.setattr(bundle, "versions", lambda _: [])
        with bundle.writing(tmp_path, "made") as (_, version):
            assert version == "2"
        assert {p.name for p in (tmp_path / "made").iterdir()} == {"1", "2"}

    def test_last_number(self, tmp_path):
        """After the last version number nothing can be written."""
        (tmp_path / "made" / "999999999").mkdir(parents=True)
        with (
            pytest.raises(BundleError, match="no version number is left"),
            bundle.writing(tmp_path, "made"),
        ):
            pass


class TestUnreadable:
    def test_labels_stay(self, copy):
        """A name's folder that can't be listed still has a labels file."""
        entry = registry_folder.VersionFolder("vowels", {0: copy}, unreadable=True)
        assert entry.folder == copy
        assert registry_folder.VersionFolder("vowels", {0: copy}).folder is None
