"""Runs a bundle's ONNX network with ONNX Runtime."""

import numpy as np
import onnxruntime

from model.bundle.bundle import INT8, NETWORK, Bundle


class OnnxEngine:
    """Fused recurrent kernels (those of *DeepCPU*, USENIX ATC 2018), on one core.

    A recurrent network's steps are too small to be divided well: two threads on a
    batch are slower than two batches on a thread each.
    """

    name = "onnx"

    def __init__(self, bundle: Bundle, precision: str = "float32"):
        """
        Args:
            precision: `int8` loads the bundle's quantized network, if it has one.
        """
        quantized = precision == "int8" and bundle.metadata.int8
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # ONNX Runtime's own format is not accepted: the checks do not cover it.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self._session = onnxruntime.InferenceSession(
            bundle.content((INT8 if quantized else NETWORK).as_posix()),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._stateful = bundle.metadata.state_size > 0

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"frames": frames, "lengths": lengths}
        if not self._stateful:
            return self._session.run(None, inputs)[0], state
        inputs["state"] = state
        probabilities, state = self._session.run(None, inputs)
        return probabilities, state
