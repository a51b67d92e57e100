"""docs/compatibility.md names the tests that hold it."""

import ast
import re

import pytest

from tests.support.servers import ROOT

TEXT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
FILES = {
    "triton": "clients/test_triton",
    "kserve": "clients/test_kserve",
    "perf": "clients/test_perf_analyzer",
    "tfs": "service/compat/test_tf_serving",
    "wire": "service/compat/test_open_inference",
    "errors": "service/compat/test_errors",
    "sessions": "service/compat/test_sequences",
}
NOT_THERE = "–"


def rows():
    """The endpoint and the tests of each row of the tables of endpoints."""
    for table in re.findall(r"^\| endpoint .*?(?=^$)", TEXT, re.MULTILINE | re.DOTALL):
        for line in table.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            yield cells[0].strip(), cells[-1].strip()


def names(file):
    """The functions, the classes, and the functions of classes in a file."""
    path = ROOT / "tests" / f"{file}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        for inner in getattr(node, "body", []):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{node.name}.{inner.name}"


def test_tables_are_seen():
    """Both tables are read."""
    found = [endpoint for endpoint, _ in rows()]
    assert any("/v1/" in one for one in found)
    assert any("/v2/" in one for one in found)
    assert len(found) > 30


@pytest.mark.parametrize(("endpoint", "tests"), list(rows()))
def test_held(endpoint, tests):
    """Each endpoint names tests that there are."""
    if tests == NOT_THERE:
        return
    found = re.findall(r"(\w+) ((?:`[\w.]+`(?:, )?)+)", tests)
    assert found, endpoint
    for file, told in found:
        assert set(re.findall(r"`([\w.]+)`", told)) <= set(names(FILES[file]))
