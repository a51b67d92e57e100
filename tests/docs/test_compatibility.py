"""docs/compatibility.md names tests that exist."""

import ast
import itertools
import re

from tests.support.servers import ROOT

FILES = {  # the names in the column `test`
    "triton": "clients/test_triton*",
    "kserve": "clients/test_kserve",
    "perf": "clients/test_perf_analyzer",
    "tfs": "service/compat/test_tf_serving*",
    "wire": "service/compat/test_open_inference*",
    "errors": "service/compat/test_errors",
    "sessions": "service/compat/test_sequences",
}
NO_TEST = "–"  # of what is not supported


def table_rows():
    """Yield the endpoint and the tests of each row of the tables of endpoints."""
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| endpoint .*?(?=^$)", page, re.MULTILINE | re.DOTALL):
        for line in table.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            yield cells[0].strip(), cells[-1].strip()


def names_in(files):
    """Return the functions and classes of test files, and the classes' functions."""
    paths, names = sorted((ROOT / "tests").glob(f"{files}.py")), set()
    texts = [path.read_text(encoding="utf-8") for path in paths]
    for node in itertools.chain(*(ast.parse(text).body for text in texts)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        for inner in getattr(node, "body", []):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(f"{node.name}.{inner.name}")
    return names


def test_each_endpoint_names_its_tests():
    """Both tables are read, and every row names tests that exist."""
    rows = list(table_rows())
    assert len(rows) > 30
    for version in ("/v1/", "/v2/"):
        assert any(version in endpoint for endpoint, _ in rows)
    names = {name: names_in(files) for name, files in FILES.items()}
    for endpoint, tests in rows:
        if tests == NO_TEST:
            continue
        named = re.findall(r"(\w+) ((?:`[\w.]+`(?:, )?)+)", tests)
        assert named, endpoint
        for file, functions in named:
            assert set(re.findall(r"`([\w.]+)`", functions)) <= names[file], endpoint
