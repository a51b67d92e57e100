"""Load exported networks as plain functions."""

from pathlib import Path

import tensorflow as tf

from model.bundle import onnx_step
from model.bundle.golden import Step


def saved_model(folder: Path) -> Step:
    """Load a SavedModel as a `Step`."""
    signatures = tf.saved_model.load(str(folder)).signatures
    if "step" not in signatures:
        serve = signatures["serving_default"]
        return lambda frames, lengths, state: (
            serve(frames=tf.constant(frames), lengths=tf.constant(lengths))[
                "probabilities"
            ].numpy(),
            state,
        )

    def step(frames, lengths, state):
        values = signatures["step"](
            frames=tf.constant(frames),
            lengths=tf.constant(lengths),
            state=tf.constant(state),
        )
        return values["probabilities"].numpy(), values["state"].numpy()

    return step


def onnx(path: Path) -> Step:
    """Load an ONNX network as a `Step`."""
    return onnx_step.load(str(path))
