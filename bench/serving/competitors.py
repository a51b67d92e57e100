"""The servers of the comparison: this service, and what one would build instead."""

import sys
from pathlib import Path

from bench import networks
from bench.environment import CORES
from bench.servers import Server, free_port, unrolled

PEERS = Path(__file__).parent / "peers"
OURS = {"Unrolled float32": "float32", "Unrolled int8": "auto"}  # auto: the default
INT8_TOLERANCE = 0.1
TENSORFLOW, FASTAPI_ONNX = "FastAPI, TensorFlow", "FastAPI, ONNX Runtime"
LITSERVE, BENTOML = "LitServe", "BentoML"
SERVERS = dict(zip(("float32", "int8"), OURS, strict=True)) | {
    "tensorflow": TENSORFLOW,
    "lean": FASTAPI_ONNX,
    "litserve": LITSERVE,
    "bentoml": BENTOML,
}
UVICORN = ["-m", "uvicorn", "--loop", "uvloop", "--http", "httptools"]
UVICORN += ["--no-access-log", "--log-level", "warning"]


def servers(
    folder: Path, bundle: str, names: list[str], pythons: dict[str, str | None]
) -> list[Server]:
    """The servers of these names, with one bundle.

    Args:
        folder: of the networks.
        pythons: the interpreters of peers in environments of their own.
    """
    spec = networks.NETWORKS[bundle]
    chosen = []
    for name in names:
        if name not in OURS:
            chosen.append(
                _peer(name, folder, bundle, pythons.get(name) or sys.executable)
            )
        elif OURS[name] == "float32" or spec.cell == "lstm":  # no int8 GRU
            chosen.append(ours(folder, bundle, name))
    return chosen


def ours(folder: Path, bundle: str, name: str = "Unrolled float32") -> Server:
    precision = OURS[name]
    tolerance = 1e-4 if precision == "float32" else INT8_TOLERANCE
    root = folder / "bundles" / bundle
    return unrolled(root, name, tolerance, precision=precision)


def _peer(name: str, folder: Path, bundle: str, python: str) -> Server:
    port = str(free_port())
    workers = ["--workers", str(CORES)]
    environment = {"ONNX": str(networks.onnx(folder, bundle))}
    ready = "/ready"
    if name == TENSORFLOW:
        command = [*UVICORN, "fastapi_tensorflow:app"]
        environment = {"KERAS": str(folder / "keras" / bundle)}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    elif name == FASTAPI_ONNX:
        command = [*UVICORN, "fastapi_onnx:app", *workers]
    elif name == LITSERVE:
        command, ready = ["litserve_app.py", *workers], "/health"
    else:
        home = folder / "bentoml"
        home.mkdir(exist_ok=True)
        command = ["-m", "bentoml", "serve", "bentoml_app:Recurrent"]
        command += ["--host", "127.0.0.1"]
        environment |= {"WORKERS": str(CORES), "BENTOML_HOME": str(home)}
        environment |= {"BENTOML_DO_NOT_TRACK": "True"}
        ready = "/readyz"
    command = [python, *command, "--port", port]
    return Server(name, command, int(port), ready, "/predict", environment, PEERS)
