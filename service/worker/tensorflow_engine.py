"""The bundle's SavedModel, run by TensorFlow."""

import numpy as np

from model.bundle import quiet
from model.bundle.bundle import Bundle

with quiet.imports():
    import tensorflow as tf


class TensorFlowEngine:
    """Calls the exported signature: a fixed graph, so no shape is traced anew.

    It computes on one core: there is a worker for each.
    """

    name = "tensorflow"

    def __init__(self, bundle: Bundle):
        _set_threads()
        # Kept: the signature holds the variables only weakly.
        with bundle.saved_model() as folder:
            self._loaded = tf.saved_model.load(str(folder))
        self._stepped = bundle.metadata.state_size > 0
        name = "step" if self._stepped else "serving_default"
        self._signature = self._loaded.signatures[name]

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"frames": tf.constant(frames), "lengths": tf.constant(lengths)}
        if self._stepped:
            inputs["state"] = tf.constant(state)
        outputs = self._signature(**inputs)
        after = outputs["state"].numpy() if self._stepped else state
        return outputs["probabilities"].numpy(), after


def _set_threads() -> None:
    """Size TensorFlow's pools, which it would else take from the host's cores."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # TensorFlow runs already, in a process that is not ours alone
