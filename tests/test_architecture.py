"""The rules of imports between folders, the sizes of files and folders, and light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

HEAVY = {"tensorflow", "keras", "onnx", "onnxruntime", "matplotlib", "sklearn"}
# Imported by who needs it, when that is chosen.
LIBRARIES = {
    "service.worker.tensorflow_engine": {"tensorflow"},
    "service.ray": {"ray"},
    "service.bulk.object_store": {"pyarrow"},
    "service.bulk.nested_parquet": {"pyarrow"},
    "service.bulk.shards": {"pyarrow"},
    "service.bulk.json_lines": {"pyarrow"},
    "service.bulk.encoded_lines": {"pyarrow"},
    "service.bulk.tables": {"pyarrow"},
    "service.bulk.job": {"pyarrow"},
    "service.bulk.runner": {"ray"},
}
FILE_READERS = ("service.bulk.", "service.cli.", "service.client.")  # as training does
READERS = "model.datasets.readers"
# The words of data sets, readers of texts, and the table of what is predicted for one.
DATASETS = ["model.datasets.dataset", "model.datasets.answers", "model.datasets.text"]
# A module may import those of its own row and of the rows below it, and the last row.
SERVICE = [
    {"app", "server", "ray", "__main__"},
    {"compat"},
    {"api", "cli"},
    {"streaming", "client"},
    {"http", "registry", "bulk"},
    {"codecs", "pool"},
    {"worker"},
    {"callers"},
    {"telemetry"},
    {"settings", "values", "errors", "os_resources"},
]
MODEL = [
    {"__main__"},
    {"workflow"},
    {"cli"},
    {"search"},
    {"export", "report"},
    {"training", "inference"},
    {"evaluation"},
    {"network", "datasets"},
    {"bundle", "config"},
]


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _name(path): path
    for package in ("model", "service", "unrolled")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules that a module imports anywhere in its text, by their full names;
    of ours the module itself, not what is taken from it."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in FILES else str(node.module))
    return names


GRAPH = {module: imports(module) for module in FILES}


def of(package: str) -> list[str]:
    return [name for name in FILES if name.startswith(f"{package}.")]


def row(module: str) -> int:
    """The row of a module's folder; every module has one."""
    package, folder = module.split(".")[:2]
    table = SERVICE if package == "service" else MODEL
    (place,) = [n for n, folders in enumerate(table) if folder in folders]
    return place


def test_imports_are_seen():
    """The reader of imports sees late ones, and modules taken from a folder."""
    assert "service.worker.tensorflow_engine" in GRAPH["service.worker.engine"]
    assert "service.errors" in GRAPH["service.http.middleware"]
    assert "model.bundle.bundle" in GRAPH["service.registry.registry"]
    assert "tensorflow" in GRAPH["service.worker.tensorflow_engine"]


@pytest.mark.parametrize("package", ["service", "model"])
def test_downwards(package):
    """Imports lead downwards in the table, or along a row."""
    upwards = {
        (module, other)
        for module in of(package)
        for other in GRAPH[module]
        if other.startswith(f"{package}.") and row(other) < row(module)
    }
    assert upwards == set()


def test_client_needs_nothing():
    """The client imports nothing of the service."""
    taken = {other for name in of("service.client") for other in GRAPH[name]}
    assert not {name for name in taken if name.startswith("service.")} - set(
        of("service.client")
    )


def test_model_knows_no_service():
    """Training never imports serving."""
    taken = {other for module in of("model") for other in GRAPH[module]}
    assert not {name for name in taken if name.startswith("service")}


def test_command_joins_the_halves():
    """`unrolled` takes the two command lines, and nothing of ours imports it."""
    assert of("unrolled") == ["unrolled.__main__"]
    ours = GRAPH["unrolled.__main__"] & set(FILES)
    assert ours == {"model.__main__", "service.__main__"}
    assert not [name for name in FILES if GRAPH[name] & {"unrolled", *of("unrolled")}]


def test_service_takes_only_the_contract():
    """Serving takes from `model` only the bundle; what reads files also its readers."""
    for module in of("service"):
        taken = {name for name in GRAPH[module] if name.startswith("model.")}
        reads = module.startswith(FILE_READERS)
        more = [*DATASETS, READERS, *of(READERS)] if reads else []
        assert taken <= {"model.bundle", *of("model.bundle"), *more}, module


def test_libraries():
    """Only who needs a heavy library imports it, and nothing in the service what only
    training needs."""
    libraries = HEAVY.union(*LIBRARIES.values())
    for module in of("service"):
        taken = {name.partition(".")[0] for name in GRAPH[module]} & libraries
        assert taken == LIBRARIES.get(module, set()), module


def test_no_circles():
    """No module reaches itself."""
    reach: dict[str, set[str]] = {name: GRAPH[name] & set(FILES) for name in FILES}
    for name in FILES:  # Warshall's closure
        for others in reach.values():
            if name in others:
                others |= reach[name]
    assert not [name for name, others in reach.items() if name in others]


def test_light_imports():
    """Importing the service, its commands, its client and the bundle loads neither an
    engine's library nor what only training needs."""
    script = (
        "import sys\n"
        "import model.bundle.operators.allowlist, service.__main__, service.app, service.client\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(result.stdout.split())
    assert not loaded & HEAVY.union(*LIBRARIES.values())
    assert {"numpy", "fastapi", "service"} <= loaded
