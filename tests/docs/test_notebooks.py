"""The notebooks of `examples` run, and the outputs saved in them are complete and small."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from tests.docs.notebooks import EXAMPLES
from tests.support.servers import ROOT

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MAX_BYTES = 200_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs(path):
    """A notebook shows its outputs, no error, and no path of the machine it ran on."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not [
        name for name in ("/tmp", "/home", "/work", "Traceback") if name in text
    ]
    cells = [c for c in nbformat.reads(text, 4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.outputs for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert {o.output_type for o in outputs} == {
        "stream",
        "display_data",
        "execute_result",
    }
    texts = "".join(
        o.get("text", "") + o.get("data", {}).get("text/html", "") for o in outputs
    )
    for folder in (tempfile.gettempdir(), Path.home(), ROOT):
        assert str(folder) not in texts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports(path):
    """A notebook imports our packages, and what `make install-training` installs."""
    lock = (ROOT / "requirements" / "train.lock").read_text(encoding="utf-8")
    known = {*re.findall(r"^([\w-]+)==", lock, re.MULTILINE), *sys.stdlib_module_names}
    known |= {"model", "service", "examples"}
    cells = nbformat.reads(path.read_text(encoding="utf-8"), 4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    names = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    assert "pandas" in names
    assert {*names} <= known


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    """Every cell runs, in a folder of its own."""
    script = (
        "import pathlib, sys\n"
        "from tests.docs.notebooks import execute\n"
        "execute(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "trained").is_dir()
