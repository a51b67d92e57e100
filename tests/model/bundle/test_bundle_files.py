"""Folders of bundles as a stranger may write them: what holds up, fills memory, leaks."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from model.bundle import bundle, golden, signature
from model.bundle.bundle import BundleError
from model.bundle.golden import Golden
from service.registry import folder as repository
from service.registry.load_errors import LoadErrors
from service.settings import Settings
from tests.support.bundles import PNG, copy_bundle
from tests.support.processes import environment, free_port, serving
from tests.support.servers import ROOT, SECONDS, running, wait

VOWELS = ROOT / "bundles" / "vowels" / "1"
CARD = "assets.extra/report/card.md"
NOBODY = 65534


@pytest.fixture
def copy(tmp_path):
    """A bundle that can be spoiled."""
    return copy_bundle(VOWELS, tmp_path / "bundles" / "vowels" / "1")


def within(work, seconds=20):
    """What `work` returns or raises; fails where it does neither in time."""
    done = []

    def run():
        try:
            done.append((work(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"not in {seconds} s"
    found, error = done[0]
    if error is not None:
        raise error
    return found


# --- files -----------------------------------------------------------------------


def make_socket(path):
    """A socket's file; its address may be too long for its whole path."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{folder}/s")
        shutil.move(f"{folder}/s", path)


ODD = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "link-to-folder": lambda path: path.symlink_to("/proc"),
}
odd = pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())


@odd
class TestOdd:
    """Something else than a regular file is refused at once, and named."""

    @pytest.mark.parametrize("place", [bundle.MARKER, CARD, bundle.NETWORK])
    def test_read(self, copy, place, make):
        """In the place of a file of a bundle, when it is read."""
        (copy / place).unlink()
        make(copy / place)
        with pytest.raises(BundleError) as caught:
            within(lambda: bundle.read(copy))
        # A folder with nothing in it is a file that is missing.
        told = ("is not a regular file", "missing file")
        assert str(caught.value).removeprefix(f"{copy / place}: ") in told

    def test_signature(self, copy, tmp_path, make):
        """In the place of the signature, where one is asked for."""
        key = signature.generate(tmp_path / "key")
        make(copy / bundle.SIGNATURE)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: bundle.read(copy, key))
        assert str(copy / bundle.SIGNATURE) in str(caught.value)

    @pytest.mark.parametrize("place", [bundle.GOLDEN, bundle.NETWORK, CARD])
    def test_contents(self, copy, place, make):
        """In the place of a file that was one when the bundle was read."""
        found, place = bundle.read(copy), Path(place)
        (copy / place).unlink()
        make(copy / place)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: found.content(place.as_posix()))
        assert str(copy / place) in str(caught.value)

    def test_labels(self, copy, make):
        """In the place of the labels."""
        make(copy.parent / repository.LABELS)
        with pytest.raises(BundleError, match="is not a regular file") as caught:
            within(lambda: repository.read_labels(copy.parent))
        assert str(copy.parent / repository.LABELS) in str(caught.value)


class TestFiles:
    def test_links(self, copy, tmp_path):
        """A link to a regular file is one, as where a volume is made of links."""
        for place in (bundle.MARKER, CARD):
            (copy / place).rename(tmp_path / Path(place).name)
            (copy / place).symlink_to(tmp_path / Path(place).name)
        assert bundle.read(copy).content(CARD).startswith(b"# vowels")

    def test_longer_than_it_says(self, copy):
        """A file of the system that says it is empty gives nothing away."""
        (copy / CARD).unlink()
        (copy / CARD).symlink_to("/proc/self/environ")
        with pytest.raises(BundleError, match="has changed while it was read"):
            bundle.read(copy)

    def test_unlisted(self, copy):
        """What is not listed is not even opened."""
        os.mkfifo(copy / "more")
        found = bundle.Bundle(copy, bundle.read(VOWELS).metadata, "")
        for name in ("more", "../../../etc/passwd"):
            with pytest.raises(BundleError, match="is not listed"):
                within(lambda name=name: found.content(name))

    @pytest.mark.parametrize(
        ("place", "most"),
        [
            pytest.param(bundle.MARKER, bundle.MAX_MARKER, id="marker"),
            pytest.param(bundle.SIGNATURE, signature.MAX_BYTES, id="signature"),
            pytest.param(CARD, bundle.MAX_BYTES, id="any"),
        ],
    )
    def test_too_large(self, copy, tmp_path, place, most):
        """A file over its limit is refused before it is read."""
        key = None
        if place == bundle.SIGNATURE:
            key = signature.generate(tmp_path / "key")
        with (copy / place).open("ab") as file:
            file.truncate(most + 1)  # with a hole: it takes no room
        with pytest.raises(BundleError, match=f"than {most:,} bytes"):
            within(lambda: bundle.read(copy, key))

    def test_marker_at_its_limit(self, copy):
        """So large a `bundle.json` is read."""
        with (copy / bundle.MARKER).open("a") as file:
            file.write(" " * (bundle.MAX_MARKER - file.tell()))
        bundle.read(copy)

    def test_large_labels(self, copy):
        """So are labels over their limit, and at it they are read."""
        path = copy.parent / repository.LABELS
        text = json.dumps({"stable": 1})
        path.write_text(text + " " * (repository.MAX_LABELS_BYTES - len(text)))
        assert repository.read_labels(copy.parent) == {"stable": 1}
        path.write_text(path.read_text() + " ")
        with pytest.raises(BundleError, match="is larger than 65,536 bytes"):
            repository.read_labels(copy.parent)


# --- folders ---------------------------------------------------------------------


class TestFolders:
    @pytest.mark.parametrize("kind", ["files", "deep", "link-to-everything"])
    def test_too_many(self, tmp_path, kind):
        """A folder with far more in it than a bundle has is not gone through."""
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
        before = within(lambda: repository.stamp(folder))
        assert hash(before) == hash(within(lambda: repository.stamp(folder)))

    def test_deep(self, copy):
        """One whose path is longer than any may be is refused, and fails nothing."""
        where = os.open(copy, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("x" * 250, dir_fd=where)
            inner = os.open("x" * 250, os.O_RDONLY, dir_fd=where)
            os.close(where)
            where = inner
        os.close(where)
        with pytest.raises(BundleError, match=os.strerror(errno.ENAMETOOLONG)):
            bundle.read(copy)
        repository.stamp(copy)

    def test_links_are_not_followed(self, copy):
        """Nothing is looked for behind a link to a folder."""
        before = repository.stamp(copy)
        (copy / "loop").symlink_to(copy)
        with pytest.raises(BundleError, match="loop: unexpected file"):
            bundle.read(copy)
        assert len(repository.stamp(copy)) == len(before) + 1

    def test_many_names(self, tmp_path, monkeypatch):
        """Of more names, or versions of one, than anybody has, none is looked at; the
        others are found."""
        monkeypatch.setattr(bundle, "MAX_LISTED", 20)
        (tmp_path / "good" / "1").mkdir(parents=True)
        for number in range(1, 22):
            (tmp_path / "many" / str(number)).mkdir(parents=True)
        good, many = repository.scan(tmp_path)
        assert (good.name, [*good.versions]) == ("good", [1])
        assert (many.name, many.versions) == ("many", {0: tmp_path / "many"})
        for number in range(20):
            (tmp_path / f"n{number}").mkdir()
        with pytest.raises(OSError, match="more than 20 entries"):
            repository.scan(tmp_path)

    def test_names_that_are_no_text(self, tmp_path):
        """Names of any bytes are found, and called by what can be told of them."""
        name = os.fsdecode(b"caf\xe9")
        (tmp_path / name / "1").mkdir(parents=True)
        (shelf,) = repository.scan(tmp_path)
        assert shelf.name == "caf\\udce9"
        assert shelf.versions == {1: tmp_path / name / "1"}

    def test_long_reason(self, copy):
        """What is told of a broken bundle is short, whatever is quoted in it."""
        marker = copy / bundle.MARKER
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"x" * 2**20: 1}))
        told = LoadErrors()
        with pytest.raises(BundleError) as caught:
            bundle.read(copy)
        told.set("vowels", copy, str(caught.value))
        (reason,) = told.of_folder("vowels")
        assert reason.startswith(f"{marker}: xxx")
        assert len(reason) == 1000

    def test_rights(self, copy):
        """A file that is given other rights is tried again."""
        before = repository.stamp(copy)
        (copy / CARD).chmod(0o600)
        assert repository.stamp(copy) != before


# --- golden answers --------------------------------------------------------------


def save(path, change=lambda arrays: None, **more):
    """Golden answers of two sequences, changed."""
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
    made, at = bytearray(data), 0
    while (at := made.find(golden.DIRECTORY_ENTRY, at)) >= 0:
        made[at + 24 : at + 28] = size.to_bytes(4, "little")
        at += 1
    return bytes(made)


def large_header(path):
    """An array of a few bytes whose header promises 4 TiB."""
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


def packed_otherwise(path):
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
    "packed": (packed_otherwise, "not compressed as NumPy"),
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
    """A class has a name of its own, which a page and a log line can show."""
    marker = copy / bundle.MARKER
    text = json.loads(marker.read_text()) | {"classes": classes}
    marker.write_text(json.dumps(text))
    with pytest.raises(BundleError, match="class"):
        bundle.read(copy)


class TestGolden:
    @pytest.mark.parametrize(("make", "said"), WRONG.values(), ids=WRONG.keys())
    def test_wrong(self, tmp_path, make, said):
        """What is no file of golden answers is refused before it takes memory."""
        with pytest.raises(ValueError, match=said):
            Golden.read(make(tmp_path / "golden.npz"))

    def test_right(self, tmp_path):
        """What these are made of is one; columns may come first."""
        frames = np.asfortranarray(np.arange(24, dtype=F32).reshape(2, 3, 4))
        found = Golden.read(save(tmp_path / "golden.npz", frames=frames))
        np.testing.assert_array_equal(found.frames, frames)

    def test_swapped(self, copy):
        """Another file put in its place after the bundle was read is seen."""
        found = bundle.read(copy)
        found.golden()
        save(copy / bundle.GOLDEN)
        with pytest.raises(BundleError, match=r"golden\.npz: SHA-256 differs"):
            found.golden()

    @pytest.mark.parametrize("said", ["features", "classes", "state_size", "task"])
    def test_of_another_network(self, tmp_path, said):
        """Sizes that `bundle.json` says are those of the golden answers: none is
        larger than they are."""
        found = bundle.read(ROOT / "bundles" / "digits" / "1")
        metadata = found.metadata
        more = {
            "features": {"input": metadata.input.model_copy(update={"features": 999})},
            "classes": {"classes": (*metadata.classes, "more")},
            "state_size": {"state_size": 10**9},
            "task": {"task": "label"},
        }[said]
        about = metadata.model_copy(update=more)
        with pytest.raises(BundleError, match="answers of another network"):
            bundle.Bundle(found.folder, about, found.digest).golden()

    def test_too_many_to_export(self, tmp_path, monkeypatch):
        """What would not be read is not written."""
        monkeypatch.setattr(golden, "MAX_BYTES", 1000)
        many = np.zeros((2, 100, 4), F32)
        with pytest.raises(ValueError, match="holds more than 1000 bytes"):
            Golden(
                many, np.ones(2, I32), np.zeros((2, 5), F32), np.zeros((2, 0), F32)
            ).save(tmp_path / "golden.npz")


# --- writing ---------------------------------------------------------------------


class TestWriting:
    def test_at_once(self, tmp_path):
        """Exports of one name at once each get a number, and all are published."""
        all_write = threading.Barrier(4, timeout=SECONDS)

        def write(text):
            with bundle.writing(tmp_path, "made") as (folder, version):
                (folder / "file").write_text(text)
                all_write.wait()
            return version, text

        with ThreadPoolExecutor(4) as pool:
            made = dict(pool.map(write, "abcd"))
        assert sorted(made) == ["1", "2", "3", "4"]
        for version, text in made.items():
            assert (tmp_path / "made" / version / "file").read_text() == text
        assert bundle.versions(tmp_path / "made") == [1, 2, 3, 4]

    def test_killed(self, tmp_path):
        """A writer that was killed keeps its number, and nobody from writing; what it
        left is no version."""
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
        assert repository.scan(tmp_path) == []
        for _ in range(2):
            with bundle.writing(tmp_path, "made") as (folder, version):
                (folder / "file").touch()
        assert version == "3"
        assert bundle.versions(tmp_path / "made") == [2, 3]

    def test_published_meanwhile(self, tmp_path, monkeypatch):
        """A version that appears after the folder was looked through is kept."""
        (tmp_path / "made" / "1").mkdir(parents=True)
        monkeypatch.setattr(bundle, "versions", lambda _: [])
        with bundle.writing(tmp_path, "made") as (_, version):
            assert version == "2"
        assert {p.name for p in (tmp_path / "made").iterdir()} == {"1", "2"}

    def test_last_number(self, tmp_path):
        """Where a stranger's version has the last number there is, that is told."""
        (tmp_path / "made" / "999999999").mkdir(parents=True)
        with (
            pytest.raises(BundleError, match="no version number is left"),
            bundle.writing(tmp_path, "made"),
        ):
            pass


# --- the service -----------------------------------------------------------------


@pytest.fixture
def shared(request):
    """A folder that other users of the machine may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def other_user():
    """Options of a process whom the modes of files bind: root they don't."""
    if os.geteuid():
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@contextmanager
def serving_as_another(root, output, **variables):
    """`serve` over a folder, by a user whom its modes bind."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    check = [sys.executable, "-c", "import service.app"]
    options = {"cwd": ROOT, "env": environment(HOME="/", **variables), **other_user()}
    if subprocess.run(check, capture_output=True, **options).returncode:
        pytest.skip("another user can't read this checkout, or its environment")
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--bundles", str(root)], stdout=file, stderr=file, **options
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(SECONDS)


def answer(process, url, output):
    """The JSON at an address; None while there is no service."""
    assert process.poll() is None, output.read_text()
    try:
        return httpx.get(url, timeout=5).json()
    except httpx.TransportError:
        return None


class TestUnreadable:
    def test_lost_and_found(self, shared, tmp_path):
        """A folder that nobody may list, as lies on every ext4 volume, is no bundle's:
        the service starts and goes on looking. One that has the name of a bundle is
        told as broken, as a version is, and the others are served."""
        root, output = shared / "bundles", tmp_path / "log"
        shutil.copytree(VOWELS, root / "vowels" / "1")
        (root / "lost+found").mkdir(mode=0o000)
        asked = {"UNROLLED_SKIP_BROKEN": "1", "UNROLLED_RELOAD_SECONDS": "0.2"}
        with serving_as_another(root, output, **asked) as (process, url):

            def told():
                found = answer(process, f"{url}/models", output)
                if found is None:
                    return None
                return [m["version"] for m in found["models"]], sorted(found["broken"])

            wait(lambda: told() == (["1"], []), "it serves")
            copy_bundle(VOWELS, shared / "2", version="2")
            (shared / "2").rename(root / "vowels" / "2")
            wait(lambda: told() == (["2"], []), "it looks")
            (root / "vowels" / "3").mkdir(mode=0o000)
            (root / "tags").mkdir(mode=0o000)
            broken = ["tags", "tags/labels.json", "vowels@3"]
            wait(lambda: told() == (["2"], broken), "it is told")
            (root / "vowels").chmod(0o000)
            wait(lambda: "vowels@vowels" in told()[1], "it is hidden")
            assert told()[0] == ["2"]
            (root / "vowels").chmod(0o755)
            (root / "vowels" / "3").chmod(0o755)
            (root / "vowels" / "3").rmdir()
            (root / "tags").rmdir()
            wait(lambda: told() == (["2"], []), "all is well")

    def test_scan(self, shared):
        """What can't be listed fails no scan; the root itself does."""
        for name in ("lost+found", "hidden", "good/1", "also/7"):
            (shared / "root" / name).mkdir(parents=True)
        (shared / "root" / "loop").symlink_to("loop")
        for name in ("lost+found", "hidden", "good/1"):
            (shared / "root" / name).chmod(0o000)
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from service.registry import folder\n"
            "for shelf in folder.scan(Path(sys.argv[1])):\n"
            "    stamps = [folder.stamp(p) for p in shelf.versions.values()]\n"
            "    print(shelf.name, *shelf.versions, shelf.unreadable)\n"
        )
        command = [sys.executable, "-c", script, str(shared / "root")]
        options = {"cwd": ROOT, "capture_output": True, "text": True, **other_user()}
        done = subprocess.run(command, **options)
        if "ModuleNotFoundError" in done.stderr:
            pytest.skip("another user can't read this checkout, or its environment")
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "also 7 False",
            "good 1 False",
            "hidden 0 True",
            "loop 0 True",
        ]
        (shared / "root").chmod(0o000)
        done = subprocess.run(command, **options)
        assert "PermissionError" in done.stderr

    def test_labels_stay(self, copy):
        """Labels of a name that can't be listed are told as broken: those from before
        stay."""
        hidden = repository.VersionFolder("vowels", {0: copy}, unreadable=True)
        assert hidden.folder == copy
        assert repository.VersionFolder("vowels", {0: copy}).folder is None


class TestHeldUp:
    def test_fifo(self, tmp_path):
        """A FIFO in the place of a bundle's file stops neither what is taken up after
        it, nor the service's end."""
        root = tmp_path / "bundles"
        copy_bundle(VOWELS, root / "vowels" / "1")
        asked = {"UNROLLED_SKIP_BROKEN": "1", "UNROLLED_RELOAD_SECONDS": "0.2"}
        with serving(tmp_path, "--bundles", root, **asked) as made:
            wait(lambda: made.answers("/readyz"), "it is ready")
            for name, place in (("a", bundle.MARKER), ("b", CARD)):
                copy_bundle(VOWELS, root / name / "1", name=name)
                (root / name / "1" / place).unlink()
                os.mkfifo(root / name / "1" / place)
            copy_bundle(VOWELS, root / "good" / "1", name="good")
            wait(lambda: made.answers("/models/good"), "what comes after is served")
            broken = httpx.get(f"{made.url}/models").json()["broken"]
            assert sorted(broken) == ["a", "b"]
            assert all("is not a regular file" in told for told in broken.values())
            begun = time.monotonic()
            made.process.send_signal(signal.SIGTERM)
            made.process.wait(SECONDS)
            assert time.monotonic() < begun + 20


# --- reports ---------------------------------------------------------------------

POLICY = "default-src 'none'; sandbox"
HTML = b"<script>fetch('/models')</script>"


@pytest.fixture(scope="module")
def reporting(tmp_path_factory):
    """A service over a bundle with whatever may be in a report."""
    root = tmp_path_factory.mktemp("reports")
    folder = copy_bundle(VOWELS, root / "vowels" / "1")
    for name in ("evil.html", "evil.svg", "evil.js", "evil", "e vil.png", "evil.PNG"):
        (folder / bundle.REPORT / name).write_bytes(HTML)
    (folder / bundle.REPORT / "page.png").write_bytes(HTML)
    (folder / bundle.REPORT / "large.json").write_bytes(b" " * (2**24 + 1))
    (folder / bundle.REPORT / "inner.md").mkdir()
    text = (folder / bundle.MARKER).read_text()
    bundle.seal(folder, bundle.Metadata.model_validate_json(text))
    with running(Settings(port=0, bundles=root, reload_seconds=0, workers=1)) as made:
        yield made, folder / bundle.REPORT


@contextmanager
def replaced(path, make):
    """Something else in the place of a file, until the block ends."""
    away = path.with_name("away")
    path.rename(away)
    make(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        away.rename(path)


class TestReports:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("card.md", "text/markdown; charset=utf-8"),
            ("metrics.json", "application/json"),
            ("history.png", "image/png"),
            ("page.png", "image/png"),
        ],
    )
    def test_kinds(self, reporting, name, kind):
        """A file of a report comes as what it is called, and no browser takes it for
        anything else, or lets it act."""
        made, folder = reporting
        answer = made.http.get(f"/models/vowels/report/{name}")
        assert answer.status_code == 200
        assert answer.content == (folder / name).read_bytes()
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize(
        "name",
        ["evil.html", "evil.svg", "evil.js", "evil", "e%20vil.png", "evil.PNG"]
        + ["inner.md", "large.json"],
    )
    def test_others(self, reporting, name):
        """Files of other kinds, and those that are too large, are not served."""
        made, _ = reporting
        assert made.http.get(f"/models/vowels/report/{name}").status_code == 404

    def test_listed(self, reporting):
        """Only what is served is listed."""
        made, _ = reporting
        plots = made.http.get("/models/vowels").json()["plots"]
        assert [plot.rpartition("/")[2] for plot in plots] == [
            "confusion.png",
            "history.png",
            "length.png",
            "page.png",
            "reliability.png",
        ]

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda p: p.symlink_to("/proc/self/environ"), id="environ"),
            pytest.param(lambda p: p.symlink_to("/etc/passwd"), id="link"),
            pytest.param(lambda p: p.write_bytes(PNG), id="changed"),
            pytest.param(os.mkfifo, id="fifo"),
            pytest.param(lambda p: None, id="removed"),
        ],
    )
    def test_replaced(self, reporting, make):
        """What is put in a file's place after it was loaded is not served."""
        made, folder = reporting
        path = "/models/vowels/report/card.md"
        with replaced(folder / "card.md", make):
            answer = within(lambda: made.http.get(path))
            assert answer.status_code == 404
            assert "PATH=" not in answer.text
        assert made.http.get(path).status_code == 200


def test_examples(reporting):
    """OpenAPI is there without the example of a bundle whose golden answers are others
    than those that were loaded."""
    made, folder = reporting
    with replaced(folder.parent / bundle.GOLDEN.name, save):
        answer = made.http.get("/openapi.json")
        assert answer.status_code == 200
        post = answer.json()["paths"]["/classify"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        assert "examples" not in content
