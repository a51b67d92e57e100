"""The wheel, installed: it serves and trains from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.servers import ROOT, wait

pytestmark = pytest.mark.slow
SAMPLE = Path(__file__).with_name("typed_sample.py")
NO_ANY = ("--disallow-any-expr", "--disallow-any-explicit", "--disallow-any-unimported")
TINY = ("--layers", "1", "--hidden", "4", "--epochs", "1")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", folder], cwd=ROOT, check=True)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel and this environment's packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = sysconfig.get_path("purelib", "venv", paths)
    present = [path for path in sys.path if path.endswith("site-packages")]
    Path(packages, "present.pth").write_text("\n".join(present) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    options = ["--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, "install", *options, wheel], check=True)
    return folder / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Run a program of the environment in an empty folder; its output."""

    def run(program, *arguments):
        result = subprocess.run(
            [installed / program, *map(str, arguments)],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def environment():
    return {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}


def test_contents(wheel):
    """It has the packages with what they ship, and neither tests nor other bundles."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"unrolled", "service", "model", "unrolled-0.1.0.dist-info"}
    for file in (
        *("unrolled/py.typed", "service/py.typed", "model/py.typed"),
        *("service/playground/index.html", "service/playground/vendor/uPlot.LICENSE"),
        *("model/presets/vowels.toml", "model/datasets/data/digits.npz"),
    ):
        assert file in names
    bundles = {n.split("/")[2] for n in names if n.startswith("unrolled/bundles/")}
    assert bundles == {"digits", "letters", "letters-live", "vowels"}


def test_help(run):
    """The command shows both halves."""
    assert "Train a network" in run("unrolled", "--help")


def test_serves(run, installed, tmp_path):
    """From an empty folder it serves the shipped bundles, and classifies."""
    where = run("python", "-c", "import service; print(service.__file__)")
    assert where.startswith(str(installed.parent))
    port = free_port()
    command = [installed / "unrolled", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment())
    try:

        def ready():
            assert process.poll() is None
            health = [installed / "unrolled", "health", "--url", url]
            return not subprocess.run(health, capture_output=True).returncode

        url = f"http://127.0.0.1:{port}"
        wait(ready, "it is ready")
        (tmp_path / "frames.json").write_text(json.dumps([[0.5] * 12] * 7))
        line = run(
            "unrolled", "classify", "frames.json", "--model", "vowels", "--url", url
        )
        assert len(json.loads(line)["probabilities"]) == 9
        assert "letters-live 128" in run("python", SAMPLE, url)
    finally:
        process.terminate()
        process.wait(60)


def test_types(installed, tmp_path):
    """Outside the checkout mypy knows the client's types: it finds no `Any`."""
    sample = shutil.copy(SAMPLE, tmp_path)
    mypy = [sys.executable, "-m", "mypy", "--config-file", os.devnull, "--strict"]
    options = ["--python-executable", installed / "python", "--cache-dir", "cache"]
    result = subprocess.run(
        [*mypy, *NO_ANY, *options, sample],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_trains(run, tmp_path):
    """From an empty folder it trains on a shipped set, and writes the version after the
    shipped one to ./trained, which `serve` serves too."""
    run("unrolled", "train", "vowels", *TINY)
    assert (tmp_path / "trained" / "vowels" / "2" / "saved_model.pb").is_file()
    assert "vowels, version 2" in run("unrolled", "inspect", "trained/vowels")
