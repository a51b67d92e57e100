"""Runs a bundle's SavedModel with TensorFlow."""

import numpy as np

from model.bundle import quiet
from model.bundle.bundle import Bundle

with quiet.imports():
    import tensorflow as tf


class TensorFlowEngine:
    """Calls the exported signature, a fixed graph: new shapes cause no new tracing.

    It computes on one core, since there is a worker for each core.
    """

    name = "tensorflow"

    def __init__(self, bundle: Bundle):
        _set_threads()
        # An attribute, because the signature has only weak references to variables.
        with bundle.saved_model() as folder:
            self._loaded = tf.saved_model.load(str(folder))
        self._stateful = bundle.metadata.state_size > 0
        name = "step" if self._stateful else "serving_default"
        self._signature = self._loaded.signatures[name]

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"frames": tf.constant(frames), "lengths": tf.constant(lengths)}
        if self._stateful:
            inputs["state"] = tf.constant(state)
        outputs = self._signature(**inputs)
        new_state = outputs["state"].numpy() if self._stateful else state
        return outputs["probabilities"].numpy(), new_state


def _set_threads() -> None:
    """Limit TensorFlow's thread pools to one core (default: all of the host's)."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # TensorFlow is already initialised, e.g. in a test process
