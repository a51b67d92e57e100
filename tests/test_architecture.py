"""Who may import whom, how long a file may be, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LONGEST = 400
HEAVY = {"tensorflow", "keras", "onnx", "matplotlib"}
# Imported by who needs it, when that is chosen.
ENGINES = {
    "service.tensorflow_engine": {"tensorflow"},
    "service.onnx_engine": {"onnxruntime"},
    "service.ray": {"ray"},
    "service.mirror": {"pyarrow"},
    "service.shards": {"pyarrow"},
    "service.job": {"pyarrow"},
    "service.claims": {"pyarrow"},
    "service.bulk": {"ray"},
}
# Each may import what stands before it, never what stands after.
ORDER = [
    {"service.settings", "service.errors", "service.metrics", "model.bundle"},
    {"model.operators", "model.contents"},
    {"service.frames", "service.state_tokens"},
    {"service.engine", "service.tensorflow_engine", "service.onnx_engine"},
    {"service.cost", "service.work"},
    {"service.lanes"},
    {"service.whole", "service.tick"},
    {"service.scheduler"},
    {"service.worker"},
    {"service.launch"},
    {"service.workers"},
    {"service.pool"},
    {"service.admission"},
    {"service.catalogue"},
    {"service.loader"},
    {"service.stock"},
    {"service.registry"},
    {"service.predictor"},
    {"service.stream"},
    {"service.talks"},
    {"service.streams"},
    {"service.routes"},
    {"service.app"},
    {"service.ray"},
    {"service.__main__"},
]


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _name(path): path
    for package in ("model", "service")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules that a module imports anywhere in its text, by their full names;
    of ours the module itself, not what is taken from it."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1])
                origin = f"{base}.{origin}".rstrip(".")
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner in FILES else origin)
    return found


GRAPH = {module: imports(module) for module in FILES}


def reach(module: str) -> set[str]:
    """Everything of ours that a module imports, directly or not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for other in GRAPH[waiting.pop()] & set(FILES):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def of(package: str) -> list[str]:
    return [name for name in FILES if f"{name}.".startswith(f"{package}.")]


def test_imports_are_seen():
    """The reader of imports sees relative, absolute and late ones."""
    assert "service.tensorflow_engine" in GRAPH["service.engine"]
    assert "service.errors" in GRAPH["service.routes.native"]
    assert "model.bundle" in GRAPH["service.registry"]
    assert "tensorflow" in GRAPH["service.tensorflow_engine"]


@pytest.mark.parametrize("module", of("model"))
def test_model_knows_no_service(module):
    """Training never imports serving."""
    assert not {name for name in GRAPH[module] if name.startswith("service")}


@pytest.mark.parametrize("module", of("service"))
class TestService:
    def test_takes_only_the_contract(self, module):
        """Serving takes from `model` only the bundle, its files' contents and what
        may be in them, the sizes of Parquet's pages, and quiet imports."""
        taken = {n for n in GRAPH[module] if f"{n}.".startswith("model.")}
        assert taken <= {
            *("model.bundle", "model.contents", "model.files"),
            *("model.operators", "model.pages", "model.quiet"),
        }

    def test_no_tensorflow(self, module):
        """Only the engine of a library imports it; nothing imports what only training
        needs."""
        libraries = HEAVY.union(*ENGINES.values())
        heavy = {name.partition(".")[0] for name in GRAPH[module]} & libraries
        assert heavy == ENGINES.get(module, set())

    def test_one_way(self, module):
        """Imports go one way: settings, errors, metrics, bundle <- operators <- frames, state_tokens
        <- engine <- cost <- lanes <- tick <- scheduler <- worker <- launch <- workers <- pool <-
        admission <- catalogue <- loader <- stock <- registry <- predictor <- streams <- routes <- app <-
        __main__."""

        def rank(name):
            for place, group in enumerate(ORDER):
                if name in group or (
                    name.startswith("service.routes") and ("service.routes" in group)
                ):
                    return place
            return None

        own = rank(module)
        if own is None:
            return  # it is held by the others: it may not lead them upwards
        above = {n for n in reach(module) if rank(n) is not None and rank(n) > own}
        assert above == set()

    def test_no_circle(self, module):
        """No module reaches itself."""
        assert module not in reach(module)


def test_routes_are_apart():
    """No module of routes imports another one."""
    routes = [name for name in of("service.routes") if name != "service.routes"]
    assert len(routes) >= 2
    for module in routes:
        assert not GRAPH[module] & set(routes)


def test_files_are_short():
    """No file is longer than 400 lines."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES.values()
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_light_imports():
    """Importing the service, its commands, its client and the bundle loads neither an
    engine's library nor what only training needs."""
    script = (
        "import sys\n"
        "import model.bundle, model.operators, service.__main__, service.app, service.client\n"
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
    assert not loaded & HEAVY.union(*ENGINES.values())
    assert {"numpy", "fastapi", "service"} <= loaded
