"""The README's shell and Python blocks, run as they stand."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

# Set up a machine, or need an engine that a test machine may lack; what they do is
# tested elsewhere, so here it is only checked that they name what is there.
SETUP = {
    "make serve\n": ["make", "--dry-run", "serve"],
    "docker compose up --wait\n": ["test", "-f", "docker-compose.yml"],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project, in which blocks may write."""
    folder = tmp_path_factory.mktemp("readme") / "unrolled"
    wanted = ("README.md", "Makefile", "docker-compose.yml", "pyproject.toml")
    folder.mkdir()
    for name in ("unrolled", "model", "service", "examples", "bundles", "requirements"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in wanted:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def port(copy):
    """The service that `make serve` starts, on another port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    log = (copy / "serve.log").open("w")
    environment = os.environ | {"UNROLLED_DRAIN_SECONDS": "0"}
    process = subprocess.Popen(
        command, cwd=copy, stdout=log, stderr=log, env=environment
    )
    try:
        ready = [sys.executable, "-m", "service", "health", "--url"]
        for _ in range(120):
            assert process.poll() is None, (copy / "serve.log").read_text()
            url = f"http://127.0.0.1:{port}"
            if (
                subprocess.run([*ready, url], cwd=copy, capture_output=True).returncode
                == 0
            ):
                break
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def run(block, kind, copy, port):
    """Standard output of a block whose every command must succeed."""
    block = block.replace("localhost:8000", f"localhost:{port}")
    block = re.sub(
        r"^((?:unrolled|python -m service) (?:health|classify|label|stream).*)$",
        rf"\1 --url http://localhost:{port}",
        block,
        flags=re.MULTILINE,
    )
    # A venv's python must be called by its own path to find its packages.
    block = re.sub(r"^unrolled ", "python -m unrolled ", block, flags=re.MULTILINE)
    block = re.sub(r"^python ", f"{sys.executable} ", block, flags=re.MULTILINE)
    command = ["bash", "-euo", "pipefail", "-c", block]
    if kind == "python":
        command = [sys.executable, "-c", block]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize(("kind", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_run(kind, block, copy, request):
    """Every shell and Python block of the README works."""
    if block in SETUP:
        subprocess.run(SETUP[block], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        return
    assert run(block, kind, copy, request.getfixturevalue("port"))


def test_the_examples_are_answered_as_the_readme_says(copy, port):
    """The curl lines give the digit, the word and the speaker that the text names."""
    said = re.search(
        r"is a `(\w)`.*? is `(\w+)`.*?speaker `(\d)`", TEXT, re.DOTALL
    ).groups()
    block = next(block for _, block in BLOCKS if "digit.json" in block)
    lines = block.strip().splitlines()
    answers = [json.loads(run(line, "sh", copy, port)) for line in lines]
    digit, word, vowel = (answer["predictions"][0] for answer in answers)
    assert (digit["label"], "".join(word["labels"]), vowel["label"]) == said
