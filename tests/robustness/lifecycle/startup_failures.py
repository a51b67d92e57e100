"""What must keep the service from starting: damaged bundles, wrong settings."""

import hashlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import launch

NETWORK = "vowels"  # the smallest
SECONDS = 10  # from its first sign of life
START_SECONDS = 40
EXTRA = "assets.extra"
SETTING, BROKEN, TAKEN = 2, 3, 1  # exit codes
Change = Callable[[Path], object]  # of a copy of the bundle


@dataclass(frozen=True, slots=True)
class Case:
    """Something that is wrong, and what is said of it."""

    name: str
    code: int
    said: str  # in one line of the log
    change: Change = lambda folder: None
    settings: dict[str, Any] = field(default_factory=dict)


def flipped(file: str) -> Case:
    """One bit of a file's middle is another."""

    def change(folder: Path) -> None:
        path = folder / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    said = "" if file.endswith("bundle.json") else Path(file).name
    return Case(f"a flipped bit in {file}", BROKEN, said, change)


def _network(edit: Callable[[Any], None]) -> Change:
    """Another ONNX network, with the digest that belongs to it."""

    def change(folder: Path) -> None:
        import onnx

        path = folder / EXTRA / "network.onnx"
        network = onnx.load(str(path))
        edit(network)
        path.write_bytes(network.SerializeToString())
        _sign(folder, f"{EXTRA}/network.onnx")

    return change


def hostile(before: bytes, after: bytes) -> Case:
    """A SavedModel in which an operator of as many letters is another: one that
    reads files, or runs what it likes."""

    def change(folder: Path) -> None:
        path = folder / "saved_model.pb"
        data = path.read_bytes()
        assert before in data
        path.write_bytes(data.replace(before, after))
        _sign(folder, "saved_model.pb")

    name = after.decode()
    return Case(f"an operator {name}", BROKEN, name, change)


def _sign(folder: Path, file: str) -> None:
    """Have a bundle hold the digest of a file as it is now."""
    marker = folder / EXTRA / "bundle.json"
    about = json.loads(marker.read_text())
    about["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    marker.write_text(json.dumps(about))


def _renamed(network: Any) -> None:
    given = network.graph.input[0]
    for node in network.graph.node:
        for place, name in enumerate(node.input):
            if name == given.name:
                node.input[place] = "other"
    given.name = "other"


def _unknown(network: Any) -> None:
    network.graph.node[0].op_type = "NoSuchOperator"


def setting(name: str, value: object) -> Case:
    variable = f"UNROLLED_{name.upper()}"
    return Case(f"{variable}={value}", SETTING, variable, settings={name: value})


CASES = [
    setting("nonsense", 1),
    flipped(f"{EXTRA}/network.onnx"),
    Case("the port is taken", TAKEN, "address already in use"),
    Case("no bundle at all", BROKEN, "no bundle", lambda folder: shutil.rmtree(folder)),
    Case("no such folder", BROKEN, "nowhere", settings={"bundles": "/nowhere"}),
    *map(
        flipped,
        [
            "saved_model.pb",
            "variables/variables.data-00000-of-00001",
            "variables/variables.index",
            "fingerprint.pb",
            f"{EXTRA}/golden.npz",
            f"{EXTRA}/bundle.json",
            f"{EXTRA}/report/metrics.json",
            f"{EXTRA}/report/card.md",
        ],
    ),
    Case(
        "an unexpected file",
        BROKEN,
        "unexpected.so",
        lambda folder: (folder / EXTRA / "unexpected.so").write_bytes(b"x"),
    ),
    Case(
        "a file is missing",
        BROKEN,
        "golden.npz",
        lambda folder: (folder / EXTRA / "golden.npz").unlink(),
    ),
    Case(
        "another name of an input",
        BROKEN,
        "onnx",
        _network(_renamed),
        {"engine": "onnx"},
    ),
    Case(
        "an unknown operator",
        BROKEN,
        "NoSuchOperator",
        _network(_unknown),
        {"engine": "onnx"},
    ),
    hostile(b"Identity", b"ReadFile"),
    hostile(b"MatMul", b"PyFunc"),
    *(setting(name, 0) for name in ("max_body_bytes", "max_steps", "queue_steps")),
    *(setting(name, -1) for name in ("max_sequences", "max_cells", "workers")),
    *(setting(name, 0) for name in ("header_seconds", "body_seconds", "max_headers")),
    *(setting(name, -1) for name in ("max_connections", "request_seconds")),
    setting("port", 65536),
    setting("api_keys", "name:nothex"),
]


@row("C4", "what must keep it from starting", full=len(CASES), fast=3)
def refused(tally: Tally, amount: int) -> None:
    slowest = 0.0
    for case in CASES[:amount]:
        slowest = max(slowest, _refused(tally, case))
    tally.figure("slowest s", slowest)


def _refused(tally: Tally, case: Case) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        copy = root / "bundles" / NETWORK / "1"
        shutil.copytree(reference.folder(NETWORK) / "1", copy)
        case.change(copy)
        given = {"bundles": root / "bundles"} | case.settings
        taken = None
        if case.code == TAKEN:
            taken = socket.create_server(("127.0.0.1", 0))
            given["port"] = taken.getsockname()[1]
        begun = time.monotonic()
        service = launch(root, **given)
        try:
            ready = False
            end = begun + START_SECONDS
            while service.process.poll() is None and time.monotonic() < end:
                if not service.log.stat().st_size:
                    begun = time.monotonic()
                elif time.monotonic() > begun + SECONDS:
                    break
                ready |= case.code != TAKEN and service.ready()
                time.sleep(0.05)
            seconds = time.monotonic() - begun
            code = service.process.poll()
        finally:
            service.stop(0)
            if taken is not None:
                taken.close()
        text = service.log.read_text()
        said = [line for line in text.splitlines() if case.said in line]
        tally.check(
            code == case.code and not ready and bool(said) and "Traceback" not in text,
            f"{case.name}: exit code {code}, ready {ready}, said: {text[-200:]}",
        )
        return seconds
