"""Bundles that take memory or time, under the feet of a service that is at work: they
are refused by name, and nobody else feels it."""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.bundle import bundle
from model.bundle.bundle import NETWORK as ONNX
from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import Traffic, p, saturation
from tests.robustness.lifecycle.endless_loads import add, until

NETWORK = "digits"
LOOK_SECONDS = 0.2  # rarely: to look holds up who is looked at
LOAD = 0.3  # of R
CLIENTS = 16
BASE_SECONDS = 5
TOLD_SECONDS = 60.0
MOST = 1_024.0  # MiB, of all processes
WORSE, NOISE_MS = 2.0, 10.0  # of the others' p99

Node = tuple[str, list[str], str]


def counts(model: onnx.ModelProto) -> None:
    """Counts to a billion with every answer, which stays right."""
    nodes: list[Node] = [
        ("Range", ["zero", "count", "one"], "counted"),
        ("Cast", ["counted"], "numbers"),
        ("Reshape", ["numbers", "row"], "a"),
        ("Reshape", ["numbers", "column"], "b"),
        ("MatMul", ["a", "b"], "result"),
    ]
    _besides(model, nodes, count=2**30)


def multiplies(model: onnx.ModelProto) -> None:
    """Multiplies 4 million numbers by themselves, again and again."""
    nodes: list[Node] = [
        ("Range", ["zero", "count", "one"], "counted"),
        ("Cast", ["counted"], "numbers"),
        ("Reshape", ["numbers", "square"], "m0"),
        *[("MatMul", [f"m{n}", "m0"], f"m{n + 1}") for n in range(200)],
        ("Reshape", ["m200", "row"], "a"),
        ("Reshape", ["m200", "column"], "b"),
        ("MatMul", ["a", "b"], "result"),
    ]
    _besides(model, nodes, count=2**22)


def attributes(model: onnx.ModelProto) -> None:
    """6 MiB of attributes without anything in them."""
    empty = [onnx.AttributeProto()] * (3 * 2**20)
    model.graph.node[0].attribute.extend(empty)


GREEDY: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "counts": (counts, "UNROLLED_LOAD_BYTES"),
    "multiplies": (multiplies, "UNROLLED_REQUEST_SECONDS|did not load within"),
    "attributes": (attributes, "bytes besides its weights"),
}


def _besides(model: onnx.ModelProto, nodes: list[Node], count: int) -> None:
    """Have a network compute `result` besides, and add none of it to its answer."""
    (last,) = (one for one in model.graph.node if "probabilities" in one.output)
    last.output[list(last.output).index("probabilities")] = "right"
    given: dict[str, object] = {"zero": 0, "one": 1, "count": count, "row": [1, -1]}
    given |= {"column": [-1, 1], "square": [2048, -1], "nothing": np.float32(0)}
    constants = (numpy_helper.from_array(np.array(v), k) for k, v in given.items())
    model.graph.initializer.extend(constants)
    ends: list[Node] = [
        ("Mul", ["result", "nothing"], "none"),
        ("Where", ["never", "none", "right"], "probabilities"),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "never"))
    kind = {"to": TensorProto.FLOAT}
    model.graph.node.extend(
        helper.make_node(name, inputs, [output], **(kind if name == "Cast" else {}))
        for name, inputs, output in [*nodes, *ends]
    )


def made(folder: Path, name: str) -> Path:
    """A greedy bundle of that name."""
    new = folder / name
    shutil.copytree(reference.folder(NETWORK) / "1", new)
    model = onnx.load(new / ONNX)
    GREEDY[name][0](model)
    (new / ONNX).write_bytes(model.SerializeToString())
    (new / bundle.INT8).unlink(missing_ok=True)
    text = (new / bundle.MARKER).read_text()
    metadata = bundle.Metadata.model_validate_json(text)
    bundle.seal(new, metadata.model_copy(update={"name": name, "int8": None}))
    return new


@contextmanager
def _watched(service: Service) -> Iterator[list[float]]:
    """The memory of all its processes, in MiB, as it changes."""
    seen, over = [service.rss()], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            seen.append(service.rss())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@row("C8", "bundles that take all memory, or minutes for a step", full=1)
def greedy(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 200, 60)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bundles"
        add(root, NETWORK, "1")
        bundles = {name: made(Path(folder), name) for name in GREEDY}
        # Only what is looked at: TensorFlow would take these bundles' other network.
        limits = {"load_seconds": 20, "reload_seconds": 0.2, "engine": "onnx"}
        with serving(tally, bundles=root, **limits) as service:
            rate = LOAD * saturation(service.port, asked)
            with Traffic(service.port, asked, CLIENTS, rate) as traffic:
                time.sleep(BASE_SECONDS)
            base = p(traffic.told)
            for name, new in bundles.items():
                with Traffic(service.port, asked, CLIENTS, rate) as traffic:
                    _refused(tally, service, new, root / name)
                for one in traffic.told:
                    tally.check(one.right, f"{name}: a request got {one.status}")
                now = p(traffic.told)
                good = now <= max(WORSE * base, base + NOISE_MS)
                tally.check(good, f"{name}: p99 {now:.1f} ms, before {base:.1f}")
                tally.figure(f"{name}, others' p99 ms", f"{now:.1f} ({base:.1f})")
            deaths = service.metric("unrolled_worker_deaths_total")
            tally.check(not deaths, f"{deaths:.0f} workers were lost")


def _refused(tally: Tally, service: Service, new: Path, to: Path) -> None:
    """A bundle that appears is told as broken, within the limit of memory."""
    name, begun = to.name, time.monotonic()

    def reason() -> str:
        return str(service.get("/models").json()["broken"].get(name, ""))

    with _watched(service) as seen:
        to.mkdir()
        os.rename(new, to / "1")
        until(lambda: reason() != "", TOLD_SECONDS)
    told, seconds = reason(), time.monotonic() - begun
    fine = told.startswith(str(to / "1")) and re.search(GREEDY[name][1], told)
    tally.check(bool(fine), f"of {name} is told: {told!r}")
    tally.check(max(seen) < MOST, f"{name}: {max(seen):.0f} MiB")
    tally.figure(f"{name}, MiB of all processes", f"{max(seen):.0f} ({seen[0]:.0f})")
    tally.figure(f"{name}, told after s", seconds)
