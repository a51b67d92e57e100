"""The playground's files: how they are served, their size, and their contents."""

import base64
import json
import re
import subprocess
import sys

import httpx
import numpy as np

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
    """Browsers get the page at /, other clients the status that KServe's clients need."""
    page = httpx.get(server, headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>Unrolled" in page.text
    status = httpx.get(server)
    assert status.json()["status"] == "alive"
    assert page.headers["vary"] == "Accept"


def test_files(server):
    """Every file is served, with an ETag and a content security policy."""
    for path in FILES:
        url = f"{server}/playground/{path.relative_to(FOLDER)}"
        response = httpx.get(url)
        assert response.content == path.read_bytes()
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(url, headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304


def test_no_other_files(server):
    """No file outside the folder is served, and no folder is listed."""
    for path in ("", "no.js", "../app.py", "%2e%2e/app.py", "vendor", "vendor/.."):
        response = httpx.get(f"{server}/playground/{path}")
        assert response.status_code == 404
        assert response.json()["type"].endswith("not-found")


def test_off(bundles):
    """The setting disables it."""
    with running(Settings(port=0, bundles=bundles, playground=False)) as service:
        status = httpx.get(service.url, headers=HTML)
        assert status.json()["status"] == "alive"
        assert httpx.get(service.url + "/playground/main.js").status_code == 404


def test_small():
    """The whole page is small, with its samples and its library."""
    assert sum(path.stat().st_size for path in FILES) < MOST


def test_self_contained():
    """It works without a network: our files have no address of another host."""
    addresses = [
        address
        for path in FILES
        if "vendor" not in path.parts
        for address in re.findall(r"https?://[\w./]*", path.read_text())
    ]
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # a namespace


def test_library_is_licensed():
    """The library has its licence, and is listed."""
    assert "MIT" in (FOLDER / "vendor/uPlot.LICENSE").read_text()
    assert "uPlot" in (ROOT / "docs/licences.md").read_text()


def test_palette():
    """The page, the reports and the terminal have the same colours."""
    style = (FOLDER / "style.css").read_text()
    assert palette.MAIN == chart.LIKELIEST
    for colour in (palette.MAIN, palette.OTHER):
        assert colour.lower() in style


def test_samples():
    """The samples are those that the script writes, and of the test sets."""
    script = [sys.executable, "examples/samples.py"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    options = {"cwd": ROOT, "capture_output": True, "check": True, "env": env}
    samples = json.loads(subprocess.run(script, **options).stdout)
    assert samples == json.loads((FOLDER / "samples.json").read_text())
    data = builtin.load("digits")
    test = data.frames.reshape(-1, 28, 28)[data.split == dataset.TEST]
    for sample in samples["digits"]:
        pixels = np.frombuffer(base64.b64decode(sample["pixels"]), np.uint8)
        assert np.abs(test - pixels.reshape(28, 28) / 255).max((1, 2)).min() < 1e-6
