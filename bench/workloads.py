"""What is asked of the servers, and the answers that are right.

| workload | sequences | asked |
| --- | --- | --- |
| W1 | 100 steps | class of each |
| W2 | 1 to 100 steps, uniform | class of each |
| W3 | those of W2 | class of each step |
| W4 | 95 % of 1 to 50 steps, 5 % of 2,000 | class of each |

A request holds one sequence. `POOL` requests are made once and sent over and over,
in the order of the pool; of every 20 in a row of W4 exactly one is long, so that no
run has more of them than another. The answers come from ONNX Runtime alone, each
sequence by itself.

    BUNDLE-WORKLOAD-DIGEST/
      bodies.jsonl    a request's body a line, as a client writes it
      answers.npz     answers [N, C] or [steps of all, C], lengths [N], short [N]
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
    network: str  # the bundle asked for

    @property
    def path(self) -> str:
        return "/label" if self.network.endswith("-label") else "/classify"


def bundle(network: str, name: str) -> str | None:
    """The bundle that a workload asks; None where the network has none for it."""
    found = f"{network}-label" if name == "W3" else network
    return found if found in networks.NETWORKS else None


def lengths(name: str) -> np.ndarray:
    """Steps of each request of the pool."""
    rng = np.random.default_rng(SEED)
    if name == "W1":
        return np.full(POOL, 100)
    if name != "W4":
        # As many of each length as of any other, in random order.
        return rng.permutation(np.linspace(1, 100, POOL).round().astype(int))
    blocks = rng.permuted(np.linspace(1, 50, POOL).round().astype(int)).reshape(-1, 20)
    blocks[np.arange(len(blocks)), rng.integers(0, 20, len(blocks))] = LONG
    return blocks.ravel()


def load(folder: Path, network: str, name: str) -> Workload:
    """A workload's pool, made if it isn't there yet."""
    found = bundle(network, name)
    assert found is not None, f"{network} has no {name}"
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    there = folder / f"{found}-{name}-{digest}"
    if not there.exists():
        partial = there.with_name(f"{there.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        _write(partial, folder, found, name)
        partial.rename(there)
    return Workload(there, found)


def sequences(name: str) -> list[np.ndarray]:
    """The pool's sequences [T, F], in numbers that four decimals hold."""
    rng = np.random.default_rng(SEED + 1)
    return [rng.normal(size=(n, networks.FEATURES)).round(4) for n in lengths(name)]


def _write(partial: Path, folder: Path, found: str, name: str) -> None:
    made = sequences(name)
    with (partial / "bodies.jsonl").open("wb") as file:
        for frames in made:
            body = {"sequences": [frames.tolist()], "model": found}
            file.write(orjson.dumps(body) + b"\n")
    steps = np.array([len(frames) for frames in made])
    answers = np.concatenate(_answers(folder, found, made))
    short = steps < LONG
    np.savez(partial / "answers.npz", answers=answers, lengths=steps, short=short)


def _answers(folder: Path, found: str, made: list[np.ndarray]) -> list[np.ndarray]:
    """[1, C] or [T, C] of each sequence."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(networks.onnx(folder, found)), options)
    state = np.zeros((1, networks.NETWORKS[found].state_size), np.float32)
    answers = []
    for frames in made:
        inputs = {
            "frames": frames[None].astype(np.float32),
            "lengths": np.array([len(frames)], np.int32),
            "state": state,
        }
        answer = session.run(["probabilities"], inputs)[0]
        answers.append(answer.reshape(-1, networks.CLASSES))
    return answers
