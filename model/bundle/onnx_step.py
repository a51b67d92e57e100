"""Run ONNX networks with ONNX Runtime. Imported when a network is loaded."""

import numpy as np
import onnxruntime

from model.bundle.golden import Step


def load(network: bytes | str) -> Step:
    """Load a network, to run on one core.

    A recurrent network's steps are too small to be divided well: two threads on a batch
    are slower than two batches on a thread each.

    Args:
        network: the content of an ONNX file, or its path.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # ONNX Runtime's own format is not accepted: the checks do not cover it.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = onnxruntime.InferenceSession(
        network, options, providers=["CPUExecutionProvider"]
    )
    stateful = len(session.get_outputs()) > 1

    def step(
        frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"frames": frames, "lengths": lengths}
        if not stateful:
            return session.run(None, inputs)[0], state
        inputs["state"] = state
        probabilities, state = session.run(None, inputs)
        return probabilities, state

    return step
