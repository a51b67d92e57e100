"""A bundle is read, found and written; any change of a file is noticed."""

import json
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.bundle import bundle, folders
from model.bundle.bundle import BundleError
from model.bundle.metadata import Metadata
from service.settings import Settings
from service.worker import engine
from tests.support.bundles import VOWELS
from tests.support.servers import ROOT, SECONDS


def refused(folder):
    with pytest.raises(BundleError) as caught:
        bundle.read(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestRefusals:
    def test_flipped_byte(self, copy):
        """A changed byte in any file is noticed, and the file named."""
        for name in bundle.read(copy).metadata.files:
            path = copy / name
            whole = path.read_bytes()
            for place in {0, len(whole) // 2, len(whole) - 1}:
                spoilt = bytearray(whole)
                spoilt[place] ^= 1
                path.write_bytes(spoilt)
                assert refused(copy).startswith(f"{path}: SHA-256 differs")
            path.write_bytes(whole)
        bundle.read(copy)

    def test_missing(self, copy):
        """A missing file is named, be it any."""
        for name in bundle.read(copy).metadata.files:
            path = copy / name
            path.rename(copy.parent / "away")
            assert refused(copy) == f"{path}: missing file"
            (copy.parent / "away").rename(path)

    def test_renamed(self, copy):
        """A renamed file is named."""
        (copy / bundle.GOLDEN).rename(copy / bundle.EXTRA / "goldem.npz")
        assert "goldem.npz: unexpected file" in refused(copy)

    def test_extra(self, copy):
        """A file too many is named, wherever it lies; so is a link, even to a folder."""
        for name in ("extra", "variables/extra", "assets.extra/report/.hidden"):
            (copy / name).write_bytes(b"")
            assert refused(copy) == f"{copy / name}: unexpected file"
            (copy / name).unlink()
        (copy / "link").symlink_to(copy.parent)
        assert refused(copy) == f"{copy / 'link'}: unexpected file"

    def test_no_marker(self, copy):
        """A folder without `bundle.json` is no bundle."""
        (copy / bundle.MARKER).unlink()
        assert "no assets.extra/bundle.json" in refused(copy)

    @pytest.mark.parametrize("length", [0, 1, 500, -3])
    def test_truncated(self, copy, length):
        """Half a `bundle.json` is refused by name."""
        path = copy / bundle.MARKER
        path.write_bytes(path.read_bytes()[:length])
        assert refused(copy).startswith(f"{path}: ")

    @pytest.mark.parametrize(
        ("place", "value", "named"),
        [
            pytest.param("colour", "red", "colour", id="unknown-key"),
            pytest.param("training.colour", 1, "training.colour", id="unknown-inner"),
            pytest.param(
                "format",
                2,
                "format: Value error, this release reads format 1, not 2",
                id="unknown-format",
            ),
            pytest.param("format", "1", "format", id="format-as-text"),
            pytest.param("task", "guess", "task", id="task"),
            pytest.param("name", "../up", "name", id="name-with-path"),
            pytest.param("version", "01", "version", id="version"),
            pytest.param("classes", [], "classes", id="no-classes"),
            pytest.param("temperature", 0, "temperature", id="temperature"),
            pytest.param("input.kind", "pictures", "input: ", id="unknown-input"),
            pytest.param("state_size", 11, "state_size", id="state-size"),
            pytest.param("normalisation.mean", [0], "12 features", id="mean"),
        ],
    )
    def test_key(self, copy, place, value, named):
        """A key that is unknown, or a value that can't be, is refused by name."""
        path = copy / bundle.MARKER
        values = json.loads(path.read_text())
        *outer, last = place.split(".")
        inner = values
        for key in outer:
            inner = inner[key]
        inner[last] = value
        path.write_text(json.dumps(values))
        text = refused(copy)
        assert text.startswith(f"{path}: ")
        assert named in text

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            (b'{"a":' + b"[]," * 500_000 + b"1}", "more than 200,000 values"),
            (b"{" + b'"a":1,' * 100_000 + b'"a":1}', "more than 20,000 keys"),
            (b"{" + b'"a":1,' * 9_000 + b'"a":1}', "errors"),
        ],
        ids=["values", "keys", "errors"],
    )
    def test_hostile(self, copy, content, named):
        """A `bundle.json` of megabytes that would become millions of objects, or of
        errors, is refused before it does."""
        (copy / bundle.MARKER).write_bytes(content)
        assert named in refused(copy)

    def test_missing_key(self, copy):
        """A `bundle.json` without one of its keys is refused by its name."""
        path = copy / bundle.MARKER
        values = json.loads(path.read_text())
        required = {k for k, v in Metadata.model_fields.items() if v.is_required()}
        assert required >= {"name", "input", "classes", "cell", "training"}
        for key in required:
            less = {k: v for k, v in values.items() if k != key}
            path.write_text(json.dumps(less))
            assert f": {key}: " in refused(copy)

    def test_no_folder(self, tmp_path):
        """A folder that doesn't exist is named."""
        assert str(tmp_path / "none") in refused(tmp_path / "none")

    def test_file_as_folder(self, copy):
        """A file in the place of a bundle is refused too."""
        assert str(copy / "saved_model.pb") in refused(copy / "saved_model.pb")


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


class TestContents:
    def test_changed(self, copy):
        """A file changed after verification reaches no engine."""
        verified = bundle.read(copy)
        for kind, name in (("onnx", bundle.NETWORK), ("tensorflow", "saved_model.pb")):
            whole = (copy / name).read_bytes()
            (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            with pytest.raises(BundleError, match="SHA-256 differs"):
                engine.load(verified, Settings(engine=kind))
            (copy / name).write_bytes(whole)
            engine.load(verified, Settings(engine=kind))

    def test_gone(self, copy):
        """A file removed after verification is named."""
        verified = bundle.read(copy)
        (copy / bundle.NETWORK).unlink()
        with pytest.raises(BundleError, match=str(bundle.NETWORK)):
            verified.content(bundle.NETWORK.as_posix())

    def test_private(self):
        """TensorFlow reads a private copy, which is removed afterwards."""
        verified = bundle.read(VOWELS)
        with verified.saved_model() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
            assert Path("saved_model.pb") in files
            assert not [path for path in files if path.is_relative_to(bundle.EXTRA)]
        assert not folder.exists()


class TestNames:
    """`names` with folders that only have a marker."""

    def bundle(self, *parts):
        folder = Path(*parts)
        (folder / "assets.extra").mkdir(parents=True)
        (folder / bundle.MARKER).write_text("{}")
        return folder

    def test_versions(self, tmp_path):
        """Versions are in the order of their numbers: 9, 10."""
        for version in (1, 9, 10):
            self.bundle(tmp_path, "a", str(version))
        assert bundle.names(tmp_path / "a") == {tmp_path / "a": [1, 9, 10]}
        assert bundle.names(tmp_path) == {tmp_path / "a": [1, 9, 10]}

    def test_names(self, tmp_path):
        """Every bundle of a folder is found, sorted by name; other files are ignored."""
        for name in ("b", "a", "c"):
            self.bundle(tmp_path, name, "1")
        (tmp_path / "README.md").write_text("")
        (tmp_path / "empty").mkdir()
        (tmp_path / "d" / "latest").mkdir(parents=True)
        (tmp_path / "d" / ".temporary").mkdir()
        (tmp_path / "d" / "01").mkdir()
        (tmp_path / "d" / "2").write_text("a file")
        assert bundle.names(tmp_path) == {tmp_path / name: [1] for name in "abc"}

    def test_unmarked(self, tmp_path):
        """A newest version without its marker is found, so that `read` gives the reason."""
        self.bundle(tmp_path, "a", "1")
        (tmp_path / "a" / "2").mkdir()
        assert bundle.names(tmp_path) == {tmp_path / "a": [1, 2]}

    def test_nothing(self, tmp_path):
        """Without a bundle or a folder nothing is found."""
        assert bundle.names(tmp_path) == {}
        assert bundle.names(tmp_path / "none") == {}
        (tmp_path / "file").write_text("")
        assert bundle.names(tmp_path / "file") == {}

    def test_number_as_name(self, tmp_path):
        """A bundle whose name is a number doesn't hide others."""
        self.bundle(tmp_path, "letters", "1")
        self.bundle(tmp_path, "2024", "3")
        assert bundle.names(tmp_path) == {
            tmp_path / "2024": [3],
            tmp_path / "letters": [1],
        }


class TestWithoutTensorFlow:
    def test_imports(self):
        """The bundle, the settings and the data sets import no heavy library."""
        modules = "model.bundle, model.config, model.datasets.builtin"
        heavy = "{'tensorflow', 'keras', 'onnx', 'matplotlib'}"
        code = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout == "set()\n", done.stderr

    def test_reading(self):
        """A bundle is read, verified and compared with its ONNX network without it."""
        script = f"""
            import sys
            from pathlib import Path
            import onnxruntime
            from model import bundle
            exported = bundle.read(Path({str(ROOT / "bundles" / "digits" / "1")!r}))
            session = onnxruntime.InferenceSession(str(exported.folder / bundle.NETWORK))
            def step(frames, lengths, state):
                inputs = {{"frames": frames, "lengths": lengths, "state": state}}
                return session.run(None, inputs)
            print(exported.golden().difference(step) < bundle.TOLERANCE)
            assert not {{"tensorflow", "keras", "onnx"}} & sys.modules.keys()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "True\n", done.stderr


def write(root, name, text="x"):
    with bundle.writing(root, name) as (folder, version):
        (folder / "file").write_text(text)
    return version


class TestWriting:
    def test_versions(self, tmp_path):
        """Each bundle is the next version, counted as numbers: 10 comes after 9."""
        assert [write(tmp_path, "a", str(n)) for n in range(11)] == [
            str(n + 1) for n in range(11)
        ]
        for version in range(1, 12):
            assert (tmp_path / f"a/{version}/file").read_text() == str(version - 1)
        assert write(tmp_path, "b") == "1"
        assert bundle.versions(tmp_path / "a") == list(range(1, 12))

    def test_gap(self, tmp_path):
        """A version that was removed is not given to another bundle again."""
        for _ in range(3):
            write(tmp_path, "a")
        shutil.rmtree(tmp_path / "a" / "2")
        assert write(tmp_path, "a") == "4"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_failure(self, tmp_path, error):
        """A failed export leaves nothing behind and no other version changed."""
        write(tmp_path, "a")

        def fail():
            with bundle.writing(tmp_path, "a") as (folder, _):
                (folder / "half").write_text("x")
                assert bundle.names(tmp_path) == {tmp_path / "a": [1]}
                raise error

        with pytest.raises(error):
            fail()
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]

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
        assert folders.scan(tmp_path) == []
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
