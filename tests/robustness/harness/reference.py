"""Requests whose right answers are known: ONNX Runtime's, to each sequence alone."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from bench.http_connection import request
from model.bundle import bundle
from tests.robustness.harness.service import ROOT

BUNDLES = ROOT / "bundles"
EXACT = 1e-5  # at most, between an answer and the one to the sequence alone


class Alone:
    """A shipped network without a service: one sequence at a time, one thread."""

    def __init__(self, name: str):
        self.folder = BUNDLES / name / "1"
        self.metadata = bundle.read(self.folder).metadata
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = self.folder / "assets.extra" / "network.onnx"
        self._session = onnxruntime.InferenceSession(str(file), options)
        self._inputs = {one.name for one in self._session.get_inputs()}

    def answer(self, frames: np.ndarray) -> np.ndarray:
        """[1, C] or [T, C] of frames [T, F]."""
        given = {
            "frames": frames[None].astype(np.float32),
            "lengths": np.array([len(frames)], np.int32),
            "state": np.zeros((1, self.metadata.state_size), np.float32),
        }
        wanted = {name: given[name] for name in self._inputs}
        (found,) = self._session.run(["probabilities"], wanted)
        return np.asarray(found).reshape(-1, len(self.metadata.classes))

    def sequence(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """[T, F] like those it was trained on, in numbers that four decimals hold."""
        scale = np.array(self.metadata.normalisation.scale)
        made = rng.normal(size=(steps, self.metadata.input.features)) / scale
        return (made + np.array(self.metadata.normalisation.mean)).round(4)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request of one sequence, and what is right."""

    path: str
    body: bytes
    answer: np.ndarray  # [1, C] or [T, C]
    steps: int

    @property
    def bytes(self) -> bytes:
        """The whole request."""
        return request(self.path, self.body)

    def difference(self, body: bytes) -> float:
        """Of the probability that is most wrong; infinite where there is none."""
        try:
            (only,) = orjson.loads(body)["predictions"]
            rows = np.array(only["probabilities"], np.float64)
        except (ValueError, KeyError, TypeError):
            return np.inf
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.shape != self.answer.shape:
            return np.inf
        return float(np.abs(rows - self.answer).max())


@cache
def alone(name: str) -> Alone:
    return Alone(name)


def body(name: str, *sequences: np.ndarray) -> bytes:
    """Of a request for a model's answers."""
    given = [frames.tolist() for frames in sequences]
    return orjson.dumps({"sequences": given, "model": name})


def path(name: str) -> str:
    return f"/{alone(name).metadata.task}"


def ask(name: str, frames: np.ndarray) -> Question:
    """The question of a sequence [T, F]."""
    network = alone(name)
    made = body(name, frames)
    return Question(path(name), made, network.answer(frames), len(frames))


def some(name: str, count: int, longest: int = 100, seed: int = 0) -> list[Question]:
    """So many, each with another sequence; of all lengths up to the longest."""
    rng = np.random.default_rng(seed)
    steps = rng.permutation(np.linspace(1, longest, count).round().astype(int))
    return [ask(name, alone(name).sequence(rng, int(n))) for n in steps]


def folder(name: str) -> Path:
    """For the setting `bundles`, where one network is enough."""
    return BUNDLES / name
