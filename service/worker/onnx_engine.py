"""Runs a bundle's ONNX network with ONNX Runtime."""

import numpy as np

from model.bundle import onnx_step
from model.bundle.bundle import INT8, NETWORK, Bundle


class OnnxEngine:
    """Fused recurrent kernels (those of *DeepCPU*, USENIX ATC 2018), on one core."""

    name = "onnx"

    def __init__(self, bundle: Bundle, precision: str = "float32"):
        """
        Args:
            precision: `int8` loads the bundle's quantized network, if it has one.
        """
        quantized = precision == "int8" and bundle.metadata.int8
        network = bundle.content((INT8 if quantized else NETWORK).as_posix())
        self._step = onnx_step.load(network)

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._step(frames, lengths, state)
