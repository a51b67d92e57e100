"""Requests with known responses: ONNX Runtime's, for each sequence alone."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from bench.http_connection import post_request
from model.bundle import bundle
from tests.robustness.harness.service import ROOT

BUNDLES = ROOT / "bundles"
TOLERANCE = 1e-5  # between a response and that to the sequence alone


class ReferenceModel:
    """A shipped model without a service: one sequence at a time, one thread."""

    def __init__(self, name: str):
        self.folder = BUNDLES / name / "1"
        self.metadata = bundle.read(self.folder).metadata
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = self.folder / "assets.extra" / "network.onnx"
        self._session = onnxruntime.InferenceSession(str(file), options)
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}

    @property
    def features(self) -> int:
        return int(self.metadata.input.features)

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """[1, C] or [T, C] of frames [T, F]."""
        inputs = {
            "frames": frames[None].astype(np.float32),
            "lengths": np.array([len(frames)], np.int32),
            "state": np.zeros((1, self.metadata.state_size), np.float32),
        }
        inputs = {name: inputs[name] for name in self._inputs}
        (output,) = self._session.run(["probabilities"], inputs)
        return np.asarray(output).reshape(-1, len(self.metadata.classes))

    def sequence(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Frames [T, F] distributed as in training, rounded to four decimals."""
        scale = np.array(self.metadata.normalisation.scale)
        frames = rng.normal(size=(steps, self.features)) / scale
        return (frames + np.array(self.metadata.normalisation.mean)).round(4)


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceRequest:
    """A request with one sequence, and its expected probabilities."""

    path: str
    body: bytes
    expected: np.ndarray  # [1, C] or [T, C]

    @property
    def http_request(self) -> bytes:
        """The whole request."""
        return post_request(self.path, self.body)

    def difference(self, body: bytes) -> float:
        """The largest error of a probability; infinite for any other response."""
        try:
            (prediction,) = orjson.loads(body)["predictions"]
            rows = np.array(prediction["probabilities"], np.float64)
        except (ValueError, KeyError, TypeError):
            return np.inf
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.shape != self.expected.shape:
            return np.inf
        return float(np.abs(rows - self.expected).max())

    def is_correct(self, status: int, body: bytes) -> bool:
        return status == 200 and self.difference(body) <= TOLERANCE


@cache
def model(name: str) -> ReferenceModel:
    return ReferenceModel(name)


def request_body(name: str, *sequences: np.ndarray) -> bytes:
    """The body of a request for a model's predictions."""
    frames = [sequence.tolist() for sequence in sequences]
    return orjson.dumps({"sequences": frames, "model": name})


def http_request(name: str, *sequences: np.ndarray) -> bytes:
    """A whole request for a model's predictions."""
    return post_request(endpoint_path(name), request_body(name, *sequences))


def endpoint_path(name: str) -> str:
    return f"/{model(name).metadata.task}"


def request_for(name: str, frames: np.ndarray) -> ReferenceRequest:
    """The request for a sequence [T, F]."""
    body = request_body(name, frames)
    return ReferenceRequest(
        endpoint_path(name), body, model(name).probabilities(frames)
    )


def request_of_length(name: str, steps: int) -> ReferenceRequest:
    """A request for a random sequence."""
    return request_for(name, model(name).sequence(np.random.default_rng(0), steps))


def requests(
    name: str, count: int, longest: int = 100, seed: int = 0
) -> list[ReferenceRequest]:
    """Requests for different sequences, of all lengths up to the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(1, longest, count).round().astype(int))
    return [request_for(name, model(name).sequence(rng, int(n))) for n in lengths]


def bundle_folder(name: str) -> Path:
    """The setting `bundles` of a service with this model only."""
    return BUNDLES / name
