"""The requests of the benchmarks, and the expected responses.

| workload | sequences | predictions |
| --- | --- | --- |
| W1 | 100 steps | class of each |
| W2 | 1 to 100 steps, uniform | class of each |
| W3 | those of W2 | class of each step |
| W4 | 95 % of 1 to 50 steps, 5 % of 2,000 | class of each |

A request holds one sequence. A pool of requests is frames_of_all once and sent again and again,
in its order; of every 20 in a row of W4 exactly one is long, so that no run has more
of them than another. The expected responses are ONNX Runtime's to each sequence alone.

    BUNDLE-WORKLOAD-DIGEST/
      bodies.jsonl    a request's body a line, as a client writes it
      answers.npz     answers [N, C] or [all steps, C], lengths [N], short [N]
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from bench import networks

POOL = 320
LONG = 2_000
SEED = 1
TEXTS = {
    "W1": "all of 100 steps",
    "W2": "1 to 100 steps",
    "W3": "1 to 100 steps, each labelled",
    "W4": "95 % of 1 to 50 steps, 5 % of 2,000",
}
NAMES = tuple(TEXTS)


@dataclass(frozen=True, slots=True)
class Workload:
    """A pool of requests on disk."""

    folder: Path
    network: str  # the bundle's name

    @property
    def path(self) -> str:
        return "/label" if self.network.endswith("-label") else "/classify"


def bundle(network: str, name: str) -> str | None:
    """The bundle for a workload; None if the network has none."""
    bundle = f"{network}-label" if name == "W3" else network
    return bundle if bundle in networks.NETWORKS else None


def lengths(name: str) -> np.ndarray:
    """Steps of each request of the pool."""
    rng = np.random.default_rng(SEED)
    if name == "W1":
        return np.full(POOL, 100)
    if name != "W4":
        # Equally many of each length, in random order.
        return rng.permutation(np.linspace(1, 100, POOL).round().astype(int))
    blocks = rng.permuted(np.linspace(1, 50, POOL).round().astype(int)).reshape(-1, 20)
    blocks[np.arange(len(blocks)), rng.integers(0, 20, len(blocks))] = LONG
    return blocks.ravel()


def load(folder: Path, network: str, name: str) -> Workload:
    """A workload's pool, frames_of_all if it does not exist."""
    bundle_name = bundle(network, name)
    assert bundle_name is not None, f"{network} has no {name}"
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    pool = folder / f"{bundle_name}-{name}-{digest}"
    if not pool.exists():
        partial = pool.with_name(f"{pool.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        _write(partial, folder, bundle_name, name)
        partial.rename(pool)
    return Workload(pool, bundle_name)


def sequences(name: str) -> list[np.ndarray]:
    """The pool's sequences [T, F], rounded to four decimals."""
    rng = np.random.default_rng(SEED + 1)
    return [rng.normal(size=(n, networks.FEATURES)).round(4) for n in lengths(name)]


def _write(partial: Path, folder: Path, bundle_name: str, name: str) -> None:
    pool = sequences(name)
    with (partial / "bodies.jsonl").open("wb") as file:
        for frames in pool:
            body = {"sequences": [frames.tolist()], "model": bundle_name}
            file.write(orjson.dumps(body) + b"\n")
    steps = np.array([len(frames) for frames in pool])
    answers = np.concatenate(_expected(folder, bundle_name, pool))
    short = steps < LONG
    np.savez(partial / "answers.npz", answers=answers, lengths=steps, short=short)


def _expected(folder: Path, name: str, pool: list[np.ndarray]) -> list[np.ndarray]:
    """The probabilities [1, C] or [T, C] of each sequence."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(networks.onnx(folder, name)), options)
    state = np.zeros((1, networks.NETWORKS[name].state_size), np.float32)
    expected = []
    for frames in pool:
        lengths = np.array([len(frames)], np.int32)
        inputs = {"frames": frames[None].astype(np.float32), "lengths": lengths}
        (output,) = session.run(["probabilities"], inputs | {"state": state})
        expected.append(output.reshape(-1, networks.CLASSES))
    return expected
