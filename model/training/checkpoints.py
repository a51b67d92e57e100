"""Save a run's state in its folder, and restore it.

An epoch of a small set takes milliseconds and a checkpoint more, so not every epoch is
saved. A resumed run trains the epochs since the last checkpoint again, to the same
weights.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from model.config import ConfigError
from model.network.network import Network
from model.training.runs import Epoch, Run

SAVE_SECONDS = 5.0  # at least this long between two checkpoints


class Checkpoints:
    """The checkpoints and logs of one run."""

    def __init__(
        self, run: Run, network: Network, optimizer: keras.optimizers.Optimizer
    ):
        self.run, self.network = run, network
        self.variables = [*network.variables, *optimizer.variables]
        self.latest = _manager(run, "latest", self.variables)
        self.best_manager = _manager(run, "best", network.variables)
        self.writer = tf.summary.create_file_writer(str(run.folder / "logs"))
        self.saved = -np.inf  # the time of the last checkpoint
        self.state: list[np.ndarray] = []  # after the last epoch
        self.history: list[Epoch] = []
        self.best: list[np.ndarray] = []

    def add(self, history: list[Epoch], best: list[np.ndarray]) -> None:
        """Log a complete epoch, and save it if the last checkpoint is old.

        Args:
            history: all epochs so far.
            best: the network's weights of the best one.
        """
        self.history, self.best = list(history), best
        self.state = values(self.variables)
        entry = history[-1]
        with self.writer.as_default(step=entry.epoch):
            for name in (
                *("cost", "error", "validation_cost", "validation_error"),
                "learning_rate",
            ):
                if getattr(entry, name) is not None:
                    tf.summary.scalar(name, getattr(entry, name))
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save the last complete epoch; the variables get its values."""
        if not self.state:
            return
        assign(self.network.variables, self.best)
        self.best_manager.save(len(self.history))
        assign(self.variables, self.state)
        self.run.write_history(self.history)
        self.latest.save(len(self.history))
        self.writer.flush()
        self.saved = time.monotonic()

    def restore(self) -> tuple[list[Epoch], list[np.ndarray]]:
        """Load the state after the last saved epoch.

        Returns:
            the history until then, and the network's weights of its best epoch.
        """
        path = self.latest.latest_checkpoint
        if path is None:
            return [], []
        restore_best(self.run, self.network)
        best = values(self.network.variables)
        self.latest.checkpoint.restore(path).assert_existing_objects_matched()
        return self.run.history()[: int(path.rpartition("-")[2])], best


def restore_best(run: Run, network: Network) -> None:
    """Load the best weights of a run into `network`.

    Raises:
        ConfigError: no epoch is complete.
    """
    manager = _manager(run, "best", network.variables)
    path = manager.latest_checkpoint
    if path is None:
        raise ConfigError(f"{run.folder}: no complete epoch to take weights from")
    manager.checkpoint.restore(path).assert_existing_objects_matched()


def values(variables: list[keras.Variable]) -> list[np.ndarray]:
    """Return a copy of the variables' values."""
    return [np.array(variable.numpy()) for variable in variables]


def assign(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    """Set the variables to such values."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _manager(
    run: Run, name: str, variables: list[keras.Variable]
) -> tf.train.CheckpointManager:
    """Checkpoint every variable by its position.

    TensorFlow doesn't follow Keras' lists of layers, and would silently skip them.
    """
    checkpoint = tf.train.Checkpoint(variables=[v.value for v in variables])
    return tf.train.CheckpointManager(checkpoint, str(run.folder / name), 1)
