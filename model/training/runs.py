"""The folder of a training run: settings, history and checkpoints.

runs/NAME/
  config.json     the settings and the data's digest
  history.json    an entry for each epoch
  latest/         checkpoint of an epoch, to resume from; see `checkpoints`
  best/           checkpoint of the best epoch until then
  logs/           TensorBoard
  folds/          answers of the cross-validation; see `cross_validation`
  lock            locked while a training is writing
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.config import Config, ConfigError, parse

# Settings that may change when a run is resumed.
WORST = "worst.md"  # the page of the worst answers, in the folder of a run
LENGTH = ("training.epochs", "training.updates", "training.patience")


@dataclass(frozen=True, slots=True)
class Epoch:
    """Metrics of one epoch; errors in percent."""

    epoch: int
    cost: float
    error: float
    validation_cost: float | None  # None: there is no validation part
    validation_error: float | None
    learning_rate: float
    best: bool


class Run:
    """The folder of one training run."""

    def __init__(self, folder: Path):
        self.folder, self._opened = folder, False

    @contextmanager
    def opened(
        self, config: Config, digest: str, *, resume: bool = False
    ) -> Iterator[None]:
        """Lock the folder, and begin a run or resume the one that it holds.

        Within it, opening the run again changes nothing.

        Args:
            digest: of the data.

        Raises:
            ConfigError: another training has locked it; or there is nothing to resume,
                or a run with other settings or data.
        """
        if self._opened:
            yield
            return
        if resume:
            self.config()  # raises if there is none
        with self.locked():
            (self.resume if resume else self.begin)(config, digest)
            self._opened = True
            try:
                yield
            finally:
                self._opened = False

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
        for name in ("latest", "best", "logs", "folds"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / WORST).unlink(missing_ok=True)
        self._write("history.json", [])
        self._write("config.json", {"data": digest, "config": config.model_dump()})

    def resume(self, config: Config, digest: str) -> None:
        """Check that the folder holds this run, complete or not; it may get longer.

        Raises:
            ConfigError: there is no run, or one with other settings or data.
        """
        before, data = self.config()
        if data != digest:
            raise ConfigError(f"{self.folder}: was trained on other data")
        old, new = _flatten(before), _flatten(config)
        changed = [key for key in new if new[key] != old[key]]
        if others := [key for key in changed if key not in LENGTH]:
            raise ConfigError(
                f"{self.folder}: was started with other settings ({', '.join(others)})"
            )
        if changed:
            # The networks of the folds were trained for the old length.
            shutil.rmtree(self.folder / "folds", ignore_errors=True)
            self._write("config.json", {"data": digest, "config": config.model_dump()})

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

    def _read(self, name: str):
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{self.folder}: holds no training run") from None

    def _write(self, name: str, value) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / name)


def _flatten(config: Config) -> dict[str, object]:
    """Return every setting by its dotted name."""
    values: dict[str, object] = {"name": config.name}
    for section, settings in config.model_dump(exclude={"name"}).items():
        values |= {f"{section}.{key}": value for key, value in settings.items()}
    return values
