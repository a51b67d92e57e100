"""The folder of a training run: settings, history and checkpoints.

runs/NAME/
  config.json     the settings and the data's digest
  history.json    an entry for each epoch
  latest/         checkpoint of the last complete epoch, to resume from
  best/           checkpoint of the best epoch by validation error
  logs/           TensorBoard
  lock            locked while a training is writing
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

from model.config import Config, ConfigError, parse
from model.network.network import Network


@dataclass(frozen=True, slots=True)
class Epoch:
    """Metrics of one epoch; errors in percent."""

    epoch: int
    cost: float
    error: float
    validation_cost: float
    validation_error: float
    learning_rate: float
    best: bool


class Run:
    """The folder of one training run."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other trainings.

        Raises:
            ConfigError: another training has locked it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # not on Windows
                pass
            except BlockingIOError:
                raise ConfigError(
                    f"{self.folder}: another training is writing to it;"
                    " wait for it, or give this one another --name"
                ) from None
            yield

    def begin(self, config: Config, digest: str) -> None:
        """Start a new run: remove the checkpoints and logs of an older one."""
        for name in ("latest", "best", "logs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("history.json", [])
        self._write("config.json", {"data": digest, "config": config.model_dump()})

    def resume(self, config: Config, digest: str) -> None:
        """Check that the folder holds this run, complete or not.

        Raises:
            ConfigError: there is no run, or one with other settings or data.
        """
        before, data = self.config()
        if data != digest:
            raise ConfigError(f"{self.folder}: was trained on other data")
        if before != config:
            old, new = _flatten(before), _flatten(config)
            changed = [key for key in new if new[key] != old[key]]
            raise ConfigError(
                f"{self.folder}: was started with other settings ({', '.join(changed)})"
            )

    def config(self) -> tuple[Config, str]:
        """Return the run's settings and the digest of its data."""
        origin = str(self.folder / "config.json")
        match self._read("config.json"):
            case {"config": dict(values), "data": str(digest)}:
                return parse(values, origin), digest
        raise ConfigError(f"{self.folder}: holds no training run")

    def history(self) -> list[Epoch]:
        """Return the entries of all epochs, in order."""
        return [Epoch(**entry) for entry in self._read("history.json")]

    def write_history(self, history: list[Epoch]) -> None:
        self._write("history.json", [dataclasses.asdict(entry) for entry in history])

    def latest(
        self, network: Network, optimizer: keras.optimizers.Optimizer
    ) -> tf.train.CheckpointManager:
        """Return the checkpoint manager of the last complete epoch."""
        folder = str(self.folder / "latest")
        return tf.train.CheckpointManager(_checkpoint(network, optimizer), folder, 1)

    def best(self, network: Network) -> tf.train.CheckpointManager:
        """Return the checkpoint manager of the best epoch's weights."""
        folder = str(self.folder / "best")
        return tf.train.CheckpointManager(_checkpoint(network), folder, 1)

    def restore_best(self, network: Network) -> None:
        """Load the best weights of the run into `network`.

        Raises:
            ConfigError: no epoch is complete.
        """
        path = tf.train.latest_checkpoint(str(self.folder / "best"))
        if path is None:
            raise ConfigError(f"{self.folder}: no complete epoch to take weights from")
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
    """Checkpoint every variable by its position.

    TensorFlow doesn't follow Keras' lists of layers, and would silently skip them.
    """
    return tf.train.Checkpoint(
        variables=[variable.value for owner in owners for variable in owner.variables]
    )


def _flatten(config: Config) -> dict[str, object]:
    """Return every setting by its dotted name."""
    values: dict[str, object] = {"name": config.name}
    for section, settings in config.model_dump(exclude={"name"}).items():
        values |= {f"{section}.{key}": value for key, value in settings.items()}
    return values
