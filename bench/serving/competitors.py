"""Who is compared: ours, and what one would build instead, on the same weights."""

import os
import sys
from pathlib import Path

from bench import networks
from bench.servers import Server, free_port

PEERS = Path(__file__).parent / "peers"
CORES = len(os.sched_getaffinity(0))
OURS = {"Unrolled float32": "float32", "Unrolled int8": "int8"}
INT8_TOLERANCE = 0.1
TENSORFLOW, LEAN = "FastAPI, TensorFlow", "FastAPI, ONNX Runtime"
LITSERVE, BENTOML = "LitServe", "BentoML"
SERVERS = dict(zip(("float32", "int8"), OURS, strict=True)) | {
    "tensorflow": TENSORFLOW,
    "lean": LEAN,
    "litserve": LITSERVE,
    "bentoml": BENTOML,
}
FAST = ["--loop", "uvloop", "--http", "httptools"]
QUIET = ["--no-access-log", "--log-level", "warning"]


def servers(
    folder: Path, bundle: str, chosen: list[str], pythons: dict[str, str]
) -> list[Server]:
    """A server of each name that serves a bundle.

    Args:
        folder: of the networks.
        pythons: the interpreter of each peer that isn't installed beside ours.
    """
    spec = networks.NETWORKS[bundle]
    made = []
    for name in chosen:
        if name in OURS:
            if OURS[name] == "float32" or spec.cell == "lstm":  # no int8 GRU
                made.append(_ours(folder, bundle, name))
        else:
            python = pythons.get(name, sys.executable)
            made.append(_MAKERS[name](folder, bundle, python))
    return made


def _ours(folder: Path, bundle: str, name: str) -> Server:
    port, precision = free_port(), OURS[name]
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    # Unset is float32 as well, also where the service knows no such setting.
    chosen = {"UNROLLED_PRECISION": precision} if precision != "float32" else {}
    return Server(
        name,
        [*command, "--bundles", str(folder / "bundles" / bundle)],
        port,
        "/readyz",
        environment={"UNROLLED_LOG_LEVEL": "warning"} | chosen,
        folder=networks.ROOT,
        tolerance=1e-4 if precision == "float32" else INT8_TOLERANCE,
    )


def _tensorflow(folder: Path, bundle: str, python: str) -> Server:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    environment = {"KERAS": str(folder / "keras" / bundle)} | quiet
    return _uvicorn(TENSORFLOW, "fastapi_tensorflow:app", python, [], environment)


def _lean(folder: Path, bundle: str, python: str) -> Server:
    environment = {"ONNX": str(networks.onnx(folder, bundle))}
    workers = ["--workers", str(CORES)]
    return _uvicorn(LEAN, "lean:app", python, workers, environment)


def _uvicorn(
    name: str, app: str, python: str, flags: list[str], environment: dict[str, str]
) -> Server:
    port = free_port()
    command = [python, "-m", "uvicorn", app, "--port", str(port)]
    return Server(
        name,
        [*command, *FAST, *QUIET, *flags],
        port,
        "/ready",
        "/predict",
        environment,
        PEERS,
    )


def _litserve(folder: Path, bundle: str, python: str) -> Server:
    port = free_port()
    return Server(
        LITSERVE,
        [python, "litserve_app.py", "--port", str(port), "--workers", str(CORES)],
        port,
        "/health",
        "/predict",
        {"ONNX": str(networks.onnx(folder, bundle))},
        PEERS,
    )


def _bentoml(folder: Path, bundle: str, python: str) -> Server:
    port = free_port()
    command = [python, "-m", "bentoml", "serve", "bentoml_app:Recurrent"]
    home = folder / "bentoml"
    home.mkdir(exist_ok=True)
    environment = {
        "ONNX": str(networks.onnx(folder, bundle)),
        "WORKERS": str(CORES),
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return Server(
        BENTOML,
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        port,
        "/readyz",
        "/predict",
        environment,
        PEERS,
    )


_MAKERS = {
    TENSORFLOW: _tensorflow,
    LEAN: _lean,
    LITSERVE: _litserve,
    BENTOML: _bentoml,
}
