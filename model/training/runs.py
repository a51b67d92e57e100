"""The folder of a training run: its settings, history and checkpoints.

runs/NAME/
  config.json     the settings and the data's digest
  history.json    one entry an epoch
  latest/         checkpoint of the last whole epoch: resumes the run
  best/           checkpoint of the best epoch by validation error
  logs/           TensorBoard
  lock            held by the training that is under way
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from model import config as config_module
from model.config import Config, ConfigError
from model.network.network import Network


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the training part came to; errors in percent."""

    epoch: int
    cost: float
    error: float
    validation_cost: float
    validation_error: float
    learning_rate: float
    best: bool


class Run:
    """One run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run: another training would write its weights in between.

        Raises:
            ConfigError: another training holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # not on this system
                pass
            except BlockingIOError:
                raise ConfigError(
                    f"{self.folder}: another training is at work there;"
                    " wait for it, or give this one another --name"
                ) from None
            yield

    def begin(self, config: Config, digest: str) -> None:
        """An empty folder for a new run; what an older run left goes."""
        for name in ("latest", "best", "logs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("history.json", [])
        self._write("config.json", {"data": digest, "config": config.model_dump()})

    def resume(self, config: Config, digest: str) -> None:
        """Check that the folder holds this very run, cut off or whole.

        Raises:
            ConfigError: no run there, other settings, or other data.
        """
        before, data = self.config()
        if data != digest:
            raise ConfigError(f"{self.folder}: was trained on other data")
        if before != config:
            theirs, ours = _flat(before), _flat(config)
            changed = [key for key in ours if ours[key] != theirs[key]]
            raise ConfigError(
                f"{self.folder}: was begun with other settings ({', '.join(changed)})"
            )

    def config(self) -> tuple[Config, str]:
        """The run's settings and its data's digest."""
        origin = str(self.folder / "config.json")
        match self._read("config.json"):
            case {"config": dict(values), "data": str(digest)}:
                return config_module.parse(values, origin), digest
        raise ConfigError(f"{self.folder}: holds no training run")

    def history(self) -> list[Epoch]:
        """One entry an epoch, in order."""
        return [Epoch(**entry) for entry in self._read("history.json")]

    def write_history(self, history: list[Epoch]) -> None:
        self._write("history.json", [dataclasses.asdict(entry) for entry in history])

    def latest(
        self, network: Network, optimizer: keras.optimizers.Optimizer
    ) -> tf.train.CheckpointManager:
        """Keeps the last whole epoch."""
        folder = str(self.folder / "latest")
        return tf.train.CheckpointManager(_checkpoint(network, optimizer), folder, 1)

    def best(self, network: Network) -> tf.train.CheckpointManager:
        """Keeps the best epoch's weights."""
        folder = str(self.folder / "best")
        return tf.train.CheckpointManager(_checkpoint(network), folder, 1)

    def restore_best(self, network: Network) -> None:
        """Give `network` the best weights of the run.

        Raises:
            ConfigError: no epoch was finished.
        """
        path = tf.train.latest_checkpoint(str(self.folder / "best"))
        if path is None:
            raise ConfigError(f"{self.folder}: no finished epoch to take weights from")
        _checkpoint(network).restore(path).assert_existing_objects_matched()

    def _read(self, name: str):
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{self.folder}: holds no training run") from None

    def _write(self, name: str, value) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / name)


def _checkpoint(*owners: Network | keras.optimizers.Optimizer) -> tf.train.Checkpoint:
    """Every variable by its place: TensorFlow does not look into Keras' lists of
    layers, and would leave their weights out without a word."""
    return tf.train.Checkpoint(
        variables=[variable.value for owner in owners for variable in owner.variables]
    )


def _flat(config: Config) -> dict[str, object]:
    """Every setting by its dotted name."""
    values: dict[str, object] = {"name": config.name}
    for section, settings in config.model_dump(exclude={"name"}).items():
        values |= {f"{section}.{key}": value for key, value in settings.items()}
    return values
