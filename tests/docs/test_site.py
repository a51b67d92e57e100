"""The documentation's site builds, and loads nothing from elsewhere."""

import os
import re
import subprocess

import pytest

from tests.support.servers import ROOT

MKDOCS = ROOT / ".venv-docs/bin/mkdocs"
LOADED = re.compile(
    r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//([^\"'> ]+)"
)


@pytest.mark.slow
@pytest.mark.skipif(not MKDOCS.exists(), reason="`make docs` sets up its environment")
def test_site(tmp_path):
    """Every page is there, no warning is given, and nothing comes from another host."""
    result = subprocess.run(
        [MKDOCS, "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    for page in (ROOT / "docs").glob("*.md"):
        html = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert not LOADED.findall(html), page
    reference = (tmp_path / "python.html").read_text(encoding="utf-8")
    for name in (
        *("service.client.Client.classify", "service.client.AsyncStream.send"),
        *("service.client.RequestError", "model.workflow.train"),
        "model.inference.network.Network.classify",
    ):
        assert f'id="{name}"' in reference, name
