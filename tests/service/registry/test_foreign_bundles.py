"""The service over bundles that a stranger may have written."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from model.bundle import bundle
from model.bundle.metadata import Metadata
from service.settings import Settings
from tests.support.bundles import CARD, PNG, VOWELS, copy_bundle, within
from tests.support.processes import environment, free_port, serving
from tests.support.servers import ROOT, SECONDS, running, wait

NOBODY = 65534
SETTINGS = {"UNROLLED_SKIP_BROKEN": "1", "UNROLLED_RELOAD_SECONDS": "0.2"}


@pytest.fixture
def shared(request):
    """A folder that other users can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def other_user():
    """Options for a process that file modes restrict; they don't restrict root."""
    if os.geteuid():
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@contextmanager
def serving_as_another(root, output, **variables):
    """Run `serve` as a user that file modes restrict."""
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


def get_json(process, url, output):
    """The JSON at an address; None before the service listens."""
    assert process.poll() is None, output.read_text()
    try:
        return httpx.get(url, timeout=5).json()
    except httpx.TransportError:
        return None


class TestUnreadable:
    @pytest.mark.slow
    def test_lost_and_found(self, shared, tmp_path):
        """`lost+found`, which nobody can list, is ignored. A folder with a bundle's name
        that can't be listed is reported as broken, like a version; others are served."""
        root, output = shared / "bundles", tmp_path / "log"
        shutil.copytree(VOWELS, root / "vowels" / "1")
        (root / "lost+found").mkdir(mode=0o000)
        with serving_as_another(root, output, **SETTINGS) as (process, url):

            def models():
                body = get_json(process, f"{url}/models", output)
                if body is None:
                    return None
                return [m["version"] for m in body["models"]], sorted(body["broken"])

            wait(lambda: models() == (["1"], []), "version 1 is served")
            copy_bundle(VOWELS, shared / "2", version="2")
            (shared / "2").rename(root / "vowels" / "2")
            wait(lambda: models() == (["2"], []), "version 2 is served")
            (root / "vowels" / "3").mkdir(mode=0o000)
            (root / "tags").mkdir(mode=0o000)
            broken = ["tags", "vowels@3"]
            wait(lambda: models() == (["2"], broken), "unreadable folders are reported")
            (root / "vowels").chmod(0o000)
            wait(lambda: "vowels@vowels" in models()[1], "vowels can't be listed")
            assert models()[0] == ["2"]
            (root / "vowels").chmod(0o755)
            (root / "vowels" / "3").chmod(0o755)
            (root / "vowels" / "3").rmdir()
            (root / "tags").rmdir()
            wait(lambda: models() == (["2"], []), "everything can be listed")

    def test_scan(self, shared):
        """A subfolder that can't be listed doesn't fail a scan; the root does."""
        for name in ("lost+found", "hidden", "good/1", "also/7"):
            (shared / "root" / name).mkdir(parents=True)
        (shared / "root" / "loop").symlink_to("loop")
        for name in ("lost+found", "hidden", "good/1"):
            (shared / "root" / name).chmod(0o000)
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from model.bundle import folders\n"
            "from service.registry.stamp import stamp_of\n"
            "for entry in folders.scan(Path(sys.argv[1])):\n"
            "    stamps = [stamp_of(p) for p in entry.versions.values()]\n"
            "    print(entry.name, *entry.versions, 0 in entry.versions)\n"
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


class TestBlocking:
    @pytest.mark.slow
    def test_fifo(self, tmp_path):
        """A FIFO in place of a bundle's file blocks neither later bundles nor the
        shutdown."""
        root = tmp_path / "bundles"
        copy_bundle(VOWELS, root / "vowels" / "1")
        with serving(tmp_path, "--bundles", root, **SETTINGS) as service:
            wait(lambda: service.answers("/readyz"), "it is ready")
            for name, place in (("a", bundle.MARKER), ("b", CARD)):
                copy_bundle(VOWELS, root / name / "1", name=name)
                (root / name / "1" / place).unlink()
                os.mkfifo(root / name / "1" / place)
            copy_bundle(VOWELS, root / "good" / "1", name="good")
            wait(lambda: service.answers("/models/good"), "the later bundle is served")

            def broken():
                return httpx.get(f"{service.url}/models").json()["broken"]

            wait(lambda: sorted(broken()) == ["a", "b"], "the others are reported")
            assert all(
                "is not a regular file" in reason for reason in broken().values()
            )
            start = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(SECONDS)
            assert time.monotonic() < start + 20


# --- reports ---------------------------------------------------------------------

POLICY = "default-src 'none'; sandbox"
HTML = b"<script>fetch('/models')</script>"


@pytest.fixture(scope="module")
def reporting(tmp_path_factory):
    """A service over a bundle whose report holds all kinds of files."""
    root = tmp_path_factory.mktemp("reports")
    folder = copy_bundle(VOWELS, root / "vowels" / "1")
    for name in ("evil.html", "evil.svg", "evil.js", "evil", "e vil.png", "evil.PNG"):
        (folder / bundle.REPORT / name).write_bytes(HTML)
    (folder / bundle.REPORT / "page.png").write_bytes(HTML)
    (folder / bundle.REPORT / "large.json").write_bytes(b" " * (2**24 + 1))
    (folder / bundle.REPORT / "inner.md").mkdir()
    text = (folder / bundle.MARKER).read_text()
    bundle.seal(folder, Metadata.model_validate_json(text))
    with running(
        Settings(port=0, bundles=root, reload_seconds=0, workers=1)
    ) as service:
        yield service, folder / bundle.REPORT


@contextmanager
def replaced(path, make):
    """Replace a file until the block ends."""
    original = path.with_name("original")
    path.rename(original)
    make(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        original.rename(path)


class TestReports:
    def test_content_types(self, reporting):
        """A report's file has the content type of its suffix. Browsers neither guess
        another type nor run scripts."""
        service, folder = reporting
        for name, content_type in (
            ("card.md", "text/markdown; charset=utf-8"),
            ("metrics.json", "application/json"),
            ("history.png", "image/png"),
            ("page.png", "image/png"),
        ):
            response = service.http.get(f"/models/vowels/report/{name}")
            assert response.status_code == 200
            assert response.content == (folder / name).read_bytes()
            assert response.headers["content-type"] == content_type
            assert response.headers["content-security-policy"] == POLICY
            assert response.headers["x-content-type-options"] == "nosniff"

    def test_others(self, reporting):
        """Files of other kinds, and files that are too large, are not served."""
        service, _ = reporting
        names = ["evil.html", "evil.svg", "evil.js", "evil", "e%20vil.png", "evil.PNG"]
        for name in (*names, "inner.md", "large.json"):
            path = f"/models/vowels/report/{name}"
            assert service.http.get(path).status_code == 404, name

    def test_listed(self, reporting):
        """Only files that are served are listed."""
        service, _ = reporting
        plots = service.http.get("/models/vowels").json()["plots"]
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
        """A file replaced after the bundle was loaded is not served."""
        service, folder = reporting
        path = "/models/vowels/report/card.md"
        with replaced(folder / "card.md", make):
            response = within(lambda: service.http.get(path))
            assert response.status_code == 404
            assert "PATH=" not in response.text
        assert service.http.get(path).status_code == 200


def test_examples(reporting):
    """The OpenAPI document leaves out the example of a bundle whose golden answers have
    changed since it was loaded."""
    service, folder = reporting
    with replaced(
        folder.parent / bundle.GOLDEN.name, lambda path: path.write_bytes(b"")
    ):
        response = service.http.get("/openapi.json")
        assert response.status_code == 200
        post = response.json()["paths"]["/classify"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        assert "examples" not in content
