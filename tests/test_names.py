"""The project's words are those of the field: no private word names or describes anything."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import ROOT

FOLDERS = ("service", "model", "unrolled", "tests", "bench", "examples", "docs")
# Names of classes, functions, arguments, attributes and variables. `given` and `told` say
# how a value came; a name says what it holds.
WORDS = """
    alone another asked bombs canaries crowd culprit doors elsewhere errands found gathered
    gently gentle given glimpse glimpsed heard hear held judged keep launched made mates one
    promise sabotage say shelf sized stock survivors talk talks tick ticked ticket told
    trying until visitors volley wanted
"""
PRIVATE = set(WORDS.split())
METAPHORS = re.compile(
    r"\b(canar(y|ies)|crowds?|culprits?|errands?|gently|glimpsed?|judged|minds?|"
    r"rows per tick|sabotaged?|shel(f|ves)|talks?|ticks?|told|visitors?|volleys?)\b"
)
RIDDLE = re.compile(r"(What|Who|Whether|Where|Those|In which)\b")
# A key of `bundle.json`, written by earlier exports too.
FORMAT = {("model/bundle/bundle.py", "mates"), ("model/export/quantize.py", "mates")}


def files(folder: str) -> list[Path]:
    """The files of a folder that git tracks, or is about to."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [ROOT / name for name in names if (ROOT / name) != Path(__file__)]


def names_of(tree: ast.AST) -> Iterator[str]:
    """The names that a module gives or uses, but not those that others export."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg() | ast.keyword(arg=str()):
                yield str(node.arg)
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute():
                yield node.attr
            case ast.alias(asname=str()):
                yield str(node.asname)


def prose_of(path: Path) -> str:
    """A page's text, or the comments and strings of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING}
    kinds.add(getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))  # Python 3.12
    return "\n".join(token.string for token in tokens if token.type in kinds)


def openings_of(tree: ast.AST) -> Iterator[str]:
    """The beginnings of all docstrings."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            yield (ast.get_docstring(node) or "")[:40]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_private_words(folder):
    """Names, comments, docstrings and pages use words that a newcomer knows."""
    for path in files(folder):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {word.strip("_").lower() for word in names_of(tree)} & PRIVATE
            assert {word for word in names if (name, word) not in FORMAT} == set(), name
            assert [text for text in openings_of(tree) if RIDDLE.match(text)] == [], (
                name
            )
        if path.suffix in {".py", ".md"}:
            assert METAPHORS.search(prose_of(path)) is None, name


def test_words_are_seen():
    """The check finds words in names, docstrings and comments."""
    text = '"""What is told."""\ndef ask(given):\n    self.made = 1\n'
    tree = ast.parse(text)
    assert {"given", "made"} <= set(names_of(tree)) & PRIVATE
    assert RIDDLE.match(next(openings_of(tree)))
    assert METAPHORS.search(text)
