"""The playground's files: who gets them, how heavy they are, and what they may do."""

import base64
import json
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest

from model.datasets import builtin, dataset
from model.report import palette
from service.api.playground import FOLDER
from service.cli import chart
from service.settings import Settings
from tests.support.servers import ROOT, running

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
MOST = 300_000  # bytes


def test_browser(server):
    """Who reads HTML gets the page at /, all others what KServe's clients look for."""
    page = httpx.get(server, headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>Unrolled" in page.text
    told = httpx.get(server)
    assert told.json()["status"] == "alive"
    assert page.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file(server, path):
    """Every file is served, may load nothing from elsewhere, and is asked for again by
    its tag."""
    url = f"{server}/playground/{path.relative_to(FOLDER)}"
    answer = httpx.get(url)
    assert answer.content == path.read_bytes()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path", ["", "nothing.js", "../app.py", "%2e%2e/app.py", "vendor", "vendor/.."]
)
def test_nothing_else(server, path):
    """Nothing that lies outside, and no list of what is there."""
    answer = httpx.get(f"{server}/playground/{path}")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("not-found")


def test_off(bundles):
    """Where the setting says no, nobody gets it."""
    with running(Settings(port=0, bundles=bundles, playground=False)) as made:
        told = httpx.get(made.url, headers=HTML)
        assert told.json()["status"] == "alive"
        assert httpx.get(made.url + "/playground/main.js").status_code == 404


def test_small():
    """The whole page, with its samples and its library."""
    assert sum(path.stat().st_size for path in FILES) < MOST


def test_self_contained():
    """It works without a network: no address of another host in what we wrote."""
    named = [
        found
        for path in FILES
        if path.parent == FOLDER
        for found in re.findall(r"https?://[\w./]*", path.read_text())
    ]
    assert set(named) == {"http://www.w3.org/2000/svg"}  # a name, nothing to load


def test_library_is_licensed():
    assert "MIT" in (FOLDER / "vendor/uPlot.LICENSE").read_text()
    assert "uPlot" in (ROOT / "docs/licences.md").read_text()


def test_palette():
    """The page, the reports and the terminal have the same colours."""
    style = (FOLDER / "style.css").read_text()
    assert palette.MAIN == chart.LIKELIEST
    for colour in (palette.MAIN, palette.OTHER):
        assert colour.lower() in style


def test_samples():
    """They are of the test parts: what is bundled is what the script makes."""
    script = [sys.executable, "examples/samples.py"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    options = {"cwd": ROOT, "capture_output": True, "check": True, "env": env}
    made = json.loads(subprocess.run(script, **options).stdout)
    assert made == json.loads((FOLDER / "samples.json").read_text())
    data = builtin.load("digits")
    test = data.frames.reshape(-1, 28, 28)[data.split == dataset.TEST]
    for sample in made["digits"]:
        pixels = np.frombuffer(base64.b64decode(sample["pixels"]), np.uint8)
        assert np.abs(test - pixels.reshape(28, 28) / 255).max((1, 2)).min() < 1e-6
