"""The pages are complete, agree with the code, and every link leads somewhere."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from service import errors
from tests import test_architecture
from tests.docs.blocks import blocks_of, prose_of
from tests.docs.tables import GENERATED, updated
from tests.support.servers import ROOT

DOCS = ROOT / "docs"
MARKDOWN = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.glob("*.md")),
    ROOT / "model/datasets/data/SOURCES.md",
]
NARROW = [path for path in MARKDOWN if path.name != "licences.md"]
COLUMNS = 100
LENGTHS = {"README.md": 150, "ARCHITECTURE.md": 80}  # lines, at most
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`]+`")


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    slugs: set[str] = set()
    for line in prose_of(path):
        if heading := re.match(r"#{1,6} +(.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            assert slug not in slugs, f"{title(path)} has two headings #{slug}"
            slugs.add(slug)
    return slugs


@pytest.mark.parametrize("page", MARKDOWN, ids=title)
def test_links(page):
    """Each link within the project leads to a file and a heading that exist."""
    for target in LINK.findall(CODE.sub("", "\n".join(prose_of(page)))):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{title(page)}: {target}"
        if page.parent == DOCS:
            assert path.is_relative_to(DOCS), f"{target} is not on the site"
        if anchor:
            assert anchor in anchors(path), f"{title(page)}: {target}"


@pytest.mark.parametrize("page", NARROW, ids=title)
def test_lines(page):
    """Lines have at most 100 columns; those of tables and commands may have more,
    but in README and ARCHITECTURE."""
    lines = page.read_text(encoding="utf-8").splitlines()
    strict = page.name in LENGTHS
    if strict:
        assert len(lines) <= LENGTHS[page.name]
    else:
        lines = [line for line in prose_of(page) if not line.startswith(("|", "!["))]
    for line in lines:
        assert len(line) <= COLUMNS or "](http" in line, line


def test_names():
    """Modules, make targets and files that pages name exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    folders = "service|model|unrolled|tests|bench|deploy|docs|examples|requirements"
    for page in set(NARROW) - {ROOT / "CHANGELOG.md"}:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(
            r"python -m ((?:service|model|unrolled|tests|bench)[\w.]*)", text
        ):
            path = ROOT / module.rstrip(".").replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), (
                f"{page}: {module}"
            )
        for target in re.findall(r"`make ([a-z-]+)[ `]", text):
            assert target in targets, f"{title(page)}: make {target}"
        shown = {block.title for block in blocks_of(page)}  # files of worked examples
        for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
            assert (ROOT / path).exists() or path in shown, f"{title(page)}: {path}"


def test_generated_tables():
    """The tables of settings and metrics are those of the code."""
    for page, part, make in GENERATED:
        text = page.read_text(encoding="utf-8")
        assert text == updated(text, part, make()), "run python -m tests.docs.tables"


def test_errors():
    """The table of errors has each kind of error with its status."""
    rows = re.findall(
        r"^\| (\d{3}) \| `([\w-]+)` \|", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    kinds = [errors.ServiceError, *errors.ServiceError.__subclasses__()]
    assert set(rows) == {(str(kind.status), kind.slug) for kind in kinds}
    assert rows == sorted(rows, key=lambda row: row[0])


def test_navigation():
    """The site has every page."""

    class Loader(yaml.SafeLoader):
        """Ignores the tag of the slugify function."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(item):
        if isinstance(item, str):
            return [item]
        items = item if isinstance(item, list) else item.values()
        return [page for each in items for page in pages(each)]

    listed = pages(config["nav"])
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


def test_presets_on_pages():
    """The preset that the tutorial shows is the beginning of the file."""
    (block,) = [b for b in blocks_of(DOCS / "tutorial.md") if b.language == "toml"]
    preset = tomllib.loads((ROOT / "model/presets/letters-live.toml").read_text())
    page = tomllib.loads(block.text)
    assert page == {key: preset[key] for key in page}


def test_architecture_agrees_with_the_code():
    """ARCHITECTURE.md has every folder, and the import table that the tests enforce."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = page[page.index("## Folders") : page.index("## The rule")]
    for package in ("service", "model"):
        for folder in (ROOT / package).iterdir():
            if folder.is_dir() and folder.name not in ("__pycache__", "presets"):
                assert re.search(rf"[`/]{folder.name}`", table), folder
    drawing = next(
        b for b in blocks_of(ROOT / "ARCHITECTURE.md") if "service   app" in b.text
    )
    rows = set(re.findall(r"\w+", drawing.text))
    for table in (test_architecture.SERVICE, test_architecture.MODEL):
        assert set().union(*table) <= rows


def test_contributing_has_every_make_target():
    """CONTRIBUTING.md lists the targets that the Makefile explains."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+) ", page, re.MULTILINE)) == explained
