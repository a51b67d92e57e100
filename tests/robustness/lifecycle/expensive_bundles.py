"""Row C8: bundles that take all memory or minutes are refused while others are served."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.servers import repeating
from model.bundle import bundle, vocabulary
from model.bundle.metadata import Metadata
from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import Traffic, baseline, capacity
from tests.robustness.lifecycle.endless_loads import (
    add_version,
    broken_reason,
    wait_for,
)
from tests.robustness.load.resource_attacks import Observer

MODEL = "digits"
MEASURE_SECONDS = 0.2  # measuring memory delays the process that is measured
LOAD = 0.3  # of the capacity
CLIENTS = 16
BASELINE_SECONDS = 5
REPORT_SECONDS = 60.0
MEMORY_PEAK = 1_024.0  # MiB of all processes
WORSE, NOISE_MS = 2.0, 10.0  # allowed p99 of other requests

Node = tuple[str, list[str], str]  # operator, inputs, output


def counts(model: onnx.ModelProto) -> None:
    """Counts to a billion in each call, without changing the output."""
    nodes: list[Node] = [
        ("Range", ["zero", "count", "one"], "range"),
        ("Cast", ["range"], "numbers"),
        ("Reshape", ["numbers", "row"], "a"),
        ("Reshape", ["numbers", "column"], "b"),
        ("MatMul", ["a", "b"], "result"),
    ]
    _add_work(model, nodes, count=2**30)


def multiplies(model: onnx.ModelProto) -> None:
    """Multiplies 4 million numbers by themselves 200 times."""
    nodes: list[Node] = [
        ("Range", ["zero", "count", "one"], "range"),
        ("Cast", ["range"], "numbers"),
        ("Reshape", ["numbers", "square"], "m0"),
        *[("MatMul", [f"m{n}", "m0"], f"m{n + 1}") for n in range(200)],
        ("Reshape", ["m200", "row"], "a"),
        ("Reshape", ["m200", "column"], "b"),
        ("MatMul", ["a", "b"], "result"),
    ]
    _add_work(model, nodes, count=2**22)


def attributes(model: onnx.ModelProto) -> None:
    """6 MiB of empty attributes."""
    empty = [onnx.AttributeProto()] * (3 * 2**20)
    model.graph.node[0].attribute.extend(empty)


def many_entries(new: Path) -> None:
    """A vocabulary of 32 MiB, of eight million entries."""
    entries = b'"a",' * (vocabulary.MAX_BYTES // 4 - 100)
    content = b'{"kind":"tokens","columns":[],"entries":[' + entries + b'"a"]}'
    (new / vocabulary.FILE).write_bytes(content)


def many_keys(new: Path) -> None:
    """A `bundle.json` of 3 MiB, of half a million unknown keys."""
    (new / bundle.MARKER).write_bytes(b"{" + b'"a":1,' * 2**19 + b'"a":1}')


# The change of a bundle's files, and what its refusal says.
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "many_entries": (many_entries, "more than 250,000 entries"),
    "many_keys": (many_keys, "more than 200,000 values"),
}
# The change of a network, and what its refusal says.
EXPENSIVE: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "counts": (counts, "UNROLLED_LOAD_BYTES"),
    "multiplies": (multiplies, "UNROLLED_REQUEST_SECONDS|did not load within"),
    "attributes": (attributes, "bytes besides its weights"),
}


def _add_work(model: onnx.ModelProto, nodes: list[Node], count: int) -> None:
    """Make a network also compute `result`, and never add it to its output."""
    (last,) = (node for node in model.graph.node if "probabilities" in node.output)
    last.output[list(last.output).index("probabilities")] = "original"
    constants: dict[str, object] = {"zero": 0, "one": 1, "count": count, "never": False}
    constants |= {"row": [1, -1], "column": [-1, 1], "square": [2048, -1]}
    constants |= {"nothing": np.float32(0)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name)
        for name, value in constants.items()
    )
    ends: list[Node] = [
        ("Mul", ["result", "nothing"], "none"),
        ("Where", ["never", "none", "original"], "probabilities"),
    ]
    for operator, inputs, output in [*nodes, *ends]:
        node = helper.make_node(operator, inputs, [output])
        if operator == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        model.graph.node.append(node)


def make_bundle(folder: Path, name: str) -> Path:
    """An expensive bundle of that name."""
    new = folder / name
    if name in HOSTILE:
        shutil.copytree(reference.bundle_folder("tags") / "1", new)
        about = Metadata.model_validate_json((new / bundle.MARKER).read_text())
        HOSTILE[name][0](new)
        if name == "many_entries":
            bundle.seal(new, about.model_copy(update={"name": name}))
        return new
    shutil.copytree(reference.bundle_folder(MODEL) / "1", new)
    model = onnx.load(new / bundle.NETWORK)
    EXPENSIVE[name][0](model)
    (new / bundle.NETWORK).write_bytes(model.SerializeToString())
    (new / bundle.INT8).unlink(missing_ok=True)
    text = (new / bundle.MARKER).read_text()
    metadata = Metadata.model_validate_json(text)
    bundle.seal(new, metadata.model_copy(update={"name": name, "int8": None}))
    return new


@row("C8", "Bundles that take all memory, or minutes for a step", full=1)
def expensive_bundles(tally: Tally, amount: int) -> None:
    """Each is reported as broken with its reason, in bounded memory; other requests are
    answered, and no worker is lost."""
    requests = reference.requests(MODEL, 200, 60)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bundles"
        add_version(root, MODEL, "1")
        bundles = {
            name: make_bundle(Path(folder), name) for name in (*HOSTILE, *EXPENSIVE)
        }
        # Only the changed network: TensorFlow would load these bundles' other one.
        limits = {"load_seconds": 20, "reload_seconds": 0.2, "engine": "onnx"}
        with serving(tally, bundles=root, **limits) as service:
            port = service.port
            rate = LOAD * capacity(port, requests)
            before = baseline(port, requests, CLIENTS, rate, BASELINE_SECONDS)
            for name, new in bundles.items():
                observer = Observer(service)
                with (
                    observer.running(),
                    Traffic(port, requests, CLIENTS, rate) as traffic,
                ):
                    _check_refused(tally, service, new, root / name)
                tally.figure(f"{name}, /livez", observer.livez)
                tally.check(not observer.is_livez_slow, f"{name}: {observer.livez}")
                traffic.check(tally, name)
                now = traffic.p99
                allowed = max(WORSE * before, before + NOISE_MS)
                message = f"{name}: p99 {now:.1f} ms, before {before:.1f}"
                tally.check(now <= allowed, message)
                tally.figure(f"{name}, others' p99 ms", f"{now:.1f} ({before:.1f})")
            deaths = service.metric("unrolled_worker_deaths_total")
            tally.check(not deaths, f"{deaths:.0f} workers were lost")


def _check_refused(tally: Tally, service: Service, new: Path, target: Path) -> None:
    """A bundle that appears is reported as broken, within the limit of memory."""
    name, start = target.name, time.monotonic()
    mib = [service.memory_mib()]
    with repeating(lambda: mib.append(service.memory_mib()), MEASURE_SECONDS):
        target.mkdir()
        os.rename(new, target / "1")
        wait_for(lambda: broken_reason(service, name) != "", REPORT_SECONDS)
    reason, seconds = broken_reason(service, name), time.monotonic() - start
    words = {**HOSTILE, **EXPENSIVE}[name][1]
    expected = reason.startswith(str(target / "1")) and re.search(words, reason)
    tally.check(bool(expected), f"{name} is reported with: {reason!r}")
    tally.check(max(mib) < MEMORY_PEAK, f"{name}: {max(mib):.0f} MiB")
    tally.figure(f"{name}, MiB of all processes", f"{max(mib):.0f} ({mib[0]:.0f})")
    tally.figure(f"{name}, reported after s", seconds)
