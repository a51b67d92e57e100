"""The folder of a search: Optuna's journal, and what the study depends on.

runs/NAME/search/
  study.log      Optuna's journal of all trials; `optuna-dashboard study.log` shows it
  settings.json  the settings that all trials share, the data's digest, the space
  search.json    the results; see `report`
  report.html    the same to look at
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from model.config import ConfigError
from model.datasets.dataset import PARTS, Dataset
from model.search.space import Space

STUDY = "search"  # its name in the journal
MIN_COMPLETE = 5  # trials, before one is stopped early


def open_study(
    folder: Path, space: Space, dataset: Dataset, *, resume: bool
) -> optuna.Study:
    """Begin a study in a folder, or open the one that it holds.

    Raises:
        ConfigError: there is none to resume, or one of other data or settings.
    """
    settings, present = folder / "settings.json", _record(space, dataset)
    if resume:
        _compare(folder, settings, present)
        _repair(folder / "study.log")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        new = folder / ".settings.json"
        new.write_text(json.dumps(present, indent=1) + "\n", encoding="utf-8")
        new.replace(settings)
    return _load(folder)


def _record(space: Space, dataset: Dataset) -> dict[str, Any]:
    """Return what a study depends on; the test part is not among it."""
    seen = dataset.take(dataset.split != PARTS.index("test"))
    return {
        "data": seen.digest,
        "config": space.config.model_dump(mode="json", exclude_unset=True),
        "space": {
            name: json.loads(distribution_to_json(distribution))
            for name, distribution in space.distributions.items()
        },
        "starts": list(space.starts),
    }


def _load(folder: Path) -> optuna.Study:
    """Open the study of a folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(folder / "study.log")
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path))),
        study_name=STUDY,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=MIN_COMPLETE),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # it was cut off
    return study


def _compare(folder: Path, settings: Path, record: dict[str, Any]) -> None:
    """Refuse to resume a study of other data or settings."""
    try:
        before = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{folder}: holds no search to resume") from None
    record = json.loads(json.dumps(record))  # lists in place of tuples
    if before.get("data") != record["data"]:
        raise ConfigError(f"{folder}: the search was of other data")
    old, new = _flatten(before), _flatten(record)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        raise ConfigError(
            f"{folder}: the search was started with other settings"
            f" ({', '.join(changed)})"
        )


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    """Return every setting by its dotted name, and what is searched."""
    values: dict[str, Any] = {}
    for key, value in record.get("config", {}).items():
        section = value if isinstance(value, dict) else None
        values |= {f"{key}.{k}": v for k, v in section.items()} if section else {}
        values |= {} if section else {key: value}
    for name, bounds in record.get("space", {}).items():
        values[f"bounds of {name}"] = bounds
    return values | {"first trials": record.get("starts")}


def _repair(journal: Path) -> None:
    """Remove a line that a killed process has written in part, and its lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        text = journal.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < len(text):
            with journal.open("r+b") as file:
                file.truncate(end)
