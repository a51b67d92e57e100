"""Every code block of README and docs runs and gives what the page shows."""

import re
import shutil

import pytest

from service.settings import Settings
from tests.docs.blocks import (
    LANGUAGES,
    Runner,
    apply_change,
    blocks_of,
    check_output,
    check_shape,
)
from tests.support.bundles import OnnxEngine
from tests.support.servers import ROOT, running

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [
    page
    for page in PAGES
    if any(
        block.treatment != "skip" and block.language != "text"
        for block in blocks_of(page)
    )
]
WITH_SLOW_CODE = [
    page for page in PAGES if any(b.treatment == "slow" for b in blocks_of(page))
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MOST_SKIPPED = 16
COPIED = ("unrolled", "model", "service", "examples", "bundles", "requirements")


def copy_project(copy, folders):
    copy.mkdir()
    for name in folders:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("Makefile", "docker-compose.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project, in which blocks may write."""
    return copy_project(tmp_path_factory.mktemp("docs") / "unrolled", COPIED)


@pytest.fixture(scope="module")
def runner(folder):
    """Runs blocks against a service that has the copy's bundles, and those trained."""
    folders = f"{folder / 'bundles'},{folder / 'trained'}"
    settings = Settings(port=0, bundles=folders, admin=True, workers=1)
    with running(settings, load_engine=OnnxEngine) as server:
        yield Runner(folder, server.url.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_quick_blocks(page, runner):
    """The blocks that take little time run, and print what the page shows."""
    runner.run_page(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SLOW_CODE, ids=lambda page: page.stem)
def test_all_blocks(page, runner):
    """All blocks of a page run in order, those that take long among them."""
    runner.run_page(page, slow=True)


@pytest.mark.slow
def test_worked_examples(tmp_path):
    """The changes that CONTRIBUTING.md shows apply, and their tests and linter pass."""
    folder = copy_project(tmp_path / "unrolled", (*COPIED, "tests"))
    runner = Runner(folder, "http://localhost:1")
    for block in blocks_of(ROOT / "CONTRIBUTING.md"):
        if block.title:
            apply_change(block, folder)
        elif block.language != "text":
            runner.run(block, None)


def test_every_block_is_understood():
    """Each block has a known language, and few are left out, for a reason."""
    blocks = [block for page in PAGES for block in blocks_of(page)]
    for block in blocks:
        assert block.language in LANGUAGES, block
        if block.treatment == "skip":
            assert block.reason, f"{block}: say why it can't run"
            for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), block
            for path in re.findall(r"(?<= )(?:deploy|examples|docs)/\S+", block.text):
                assert (ROOT / path).exists(), f"{block}: {path}"
    assert sum(block.treatment == "skip" for block in blocks) <= MOST_SKIPPED


def test_differences_are_seen():
    """A response or output that is not as the page shows it fails."""
    check_shape({"a": [1, "…"], "b": "x"}, {"a": [2, 3], "b": "x"}, "$")
    for actual in ({"a": [2, 3], "b": "y"}, {"a": ["2", 3], "b": "x"}, {"a": [2, 3]}):
        with pytest.raises(AssertionError):
            check_shape({"a": [1, "…"], "b": "x"}, actual, "$")
    check_output("error 1.35 % of …", "error  2 % of 2,000 digits\n")
    for output in ("error 2 % in all", "accuracy 2 % of all"):
        with pytest.raises(AssertionError):
            check_output("error 1.35 % of …", output)
