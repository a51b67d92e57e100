"""Row C4: damaged bundles and invalid settings keep the service from starting."""

import hashlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import launch

MODEL = "vowels"  # the smallest
SECONDS = 10  # from its first log line
START_SECONDS = 40
EXTRA = "assets.extra"
ONNX = {"engine": "onnx"}
SETTING, BROKEN, TAKEN = 2, 3, 1  # exit codes
Change = Callable[[Path], object]  # of a copy of the bundle


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, its exit code, and a text in its log line."""

    name: str
    code: int
    logged: str
    change: Change = lambda folder: None
    settings: dict[str, Any] = field(default_factory=dict)


def flipped_bit(file: str) -> Case:
    """One bit in the middle of a file is flipped."""

    def change(folder: Path) -> None:
        path = folder / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    logged = "" if file.endswith("bundle.json") else Path(file).name
    return Case(f"a flipped bit in {file}", BROKEN, logged, change)


def _changed_network(edit: Callable[[Any], None]) -> Change:
    """An edited ONNX network, with the digest that belongs to it."""

    def change(folder: Path) -> None:
        import onnx

        path = folder / EXTRA / "network.onnx"
        network = onnx.load(str(path))
        edit(network)
        path.write_bytes(network.SerializeToString())
        _update_digest(folder, f"{EXTRA}/network.onnx")

    return change


def hostile_operator(before: bytes, after: bytes) -> Case:
    """A SavedModel with an operator that reads files or runs code, in place of one
    whose name is as long."""

    def change(folder: Path) -> None:
        path = folder / "saved_model.pb"
        data = path.read_bytes()
        assert before in data
        path.write_bytes(data.replace(before, after))
        _update_digest(folder, "saved_model.pb")

    name = after.decode()
    return Case(f"an operator {name}", BROKEN, name, change)


def _update_digest(folder: Path, file: str) -> None:
    """Write the digest of a changed file into the bundle's metadata."""
    marker = folder / EXTRA / "bundle.json"
    metadata = json.loads(marker.read_text())
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    metadata["files"][file] = digest
    marker.write_text(json.dumps(metadata))


def _rename_input(network: Any) -> None:
    tensor = network.graph.input[0]
    for node in network.graph.node:
        for place, name in enumerate(node.input):
            if name == tensor.name:
                node.input[place] = "other"
    tensor.name = "other"


def _unknown_operator(network: Any) -> None:
    network.graph.node[0].op_type = "NoSuchOperator"


def invalid(name: str, value: object) -> Case:
    """A setting with an invalid value."""
    variable = f"UNROLLED_{name.upper()}"
    return Case(f"{variable}={value}", SETTING, variable, settings={name: value})


CASES = [
    invalid("nonsense", 1),
    flipped_bit(f"{EXTRA}/network.onnx"),
    Case("the port is taken", TAKEN, "address already in use"),
    Case("no bundle at all", BROKEN, "no bundle", shutil.rmtree),
    Case("no such folder", BROKEN, "nowhere", settings={"bundles": "/nowhere"}),
    flipped_bit("saved_model.pb"),
    flipped_bit("variables/variables.data-00000-of-00001"),
    flipped_bit("variables/variables.index"),
    flipped_bit("fingerprint.pb"),
    flipped_bit(f"{EXTRA}/golden.npz"),
    flipped_bit(f"{EXTRA}/bundle.json"),
    flipped_bit(f"{EXTRA}/report/metrics.json"),
    flipped_bit(f"{EXTRA}/report/card.md"),
    Case(
        "an unexpected file", BROKEN, "unexpected.so",
        lambda folder: (folder / EXTRA / "unexpected.so").write_bytes(b"x"),
    ),
    Case(
        "a missing file", BROKEN, "golden.npz",
        lambda folder: (folder / EXTRA / "golden.npz").unlink(),
    ),
    Case("a renamed input", BROKEN, "onnx", _changed_network(_rename_input), ONNX),
    Case("an unknown operator", BROKEN, "NoSuchOperator", _changed_network(_unknown_operator), ONNX),
    hostile_operator(b"Identity", b"ReadFile"),
    hostile_operator(b"MatMul", b"PyFunc"),
    *(invalid(name, 0) for name in ("max_body_bytes", "max_steps", "queue_steps")),
    *(invalid(name, -1) for name in ("max_sequences", "max_cells", "workers")),
    *(invalid(name, 0) for name in ("header_seconds", "body_seconds", "max_headers")),
    *(invalid(name, -1) for name in ("max_connections", "request_seconds")),
    invalid("port", 65536),
    invalid("api_keys", "name:nothex"),
]  # fmt: skip


@row("C4", "Faults that must keep it from starting", full=len(CASES), fast=3)
def startup_failures(tally: Tally, amount: int) -> None:
    """It ends with the fault's exit code and a log line about it, and was never ready."""
    slowest = max(_try_case(tally, case) for case in CASES[:amount])
    tally.figure("slowest s", slowest)


def _try_case(tally: Tally, case: Case) -> float:
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        copy = root / "bundles" / MODEL / "1"
        shutil.copytree(reference.bundle_folder(MODEL) / "1", copy)
        case.change(copy)
        settings = {"bundles": root / "bundles"} | case.settings
        if case.code == TAKEN:
            taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            settings["port"] = taken.getsockname()[1]
        start = time.monotonic()
        service = launch(root, **settings)
        try:
            ready = False
            deadline = start + START_SECONDS
            while service.process.poll() is None and time.monotonic() < deadline:
                if not service.log.stat().st_size:
                    start = time.monotonic()
                elif time.monotonic() > start + SECONDS:
                    break
                ready |= case.code != TAKEN and service.is_ready()
                time.sleep(0.05)
            seconds = time.monotonic() - start
            code = service.process.poll()
        finally:
            service.stop(0)
        text = service.log.read_text()
        logged = any(case.logged in line for line in text.splitlines())
        refused = code == case.code and not ready
        message = f"{case.name}: exit code {code}, ready {ready}, log: {text[-200:]}"
        tally.check(refused and logged and "Traceback" not in text, message)
        return seconds
