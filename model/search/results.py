"""The results of a search: its trials, the best of them, and which settings matter."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from model.config import Config, ConfigError
from model.search.space import Space

MIN_IMPORTANCE = 10  # complete trials, below which it says nothing
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial.

    Attributes:
        number: from 1, without those that were cut off.
        state: pruned trials were worse than most after a part of their folds or epochs.
        settings: names and values of the settings that are searched.
        cost: cross entropy of unseen sequences after calibration, in nats; None: failed.
        error: of these, in percent.
        seconds: that it took.
        reason: of the failure.
    """

    number: int
    state: State
    settings: dict[str, Any]
    cost: float | None
    error: float | None
    seconds: float
    reason: str | None = None


@dataclass(frozen=True)
class Search:
    """A search, as far as it is.

    Attributes:
        folder: that of the study.
        space: the settings that are searched.
        trials: all that are finished.
        importance: of each setting for a low cost, of 1 in all; empty with few trials.
        interrupted: Ctrl-C has ended it.
    """

    folder: Path
    space: Space
    trials: tuple[Trial, ...]
    importance: dict[str, float]
    interrupted: bool = False

    @property
    def best(self) -> Trial | None:
        """The complete trial of the lowest cost."""
        return best(self.trials)

    @property
    def seconds(self) -> float:
        """The time of all finished trials."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def config(self) -> Config:
        """The settings of the best trial; what they leave open is for `defaults`.

        Raises:
            ConfigError: no trial is complete.
        """
        if self.best is None:
            raise ConfigError(
                f"{self.folder}: no trial is complete; give the search more --minutes"
            )
        return self.space.settings(self.best.settings)


def best(finished: Collection[Trial]) -> Trial | None:
    """Return the complete trial of the lowest cost; the first of equal ones."""
    complete = [trial for trial in finished if trial.state == "complete"]
    return min(complete, key=lambda trial: trial.cost or 0, default=None)


def list_trials(study: optuna.Study) -> list[Trial]:
    """Return the finished trials, without those that were cut off."""
    result: list[Trial] = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        state: State
        match trial.state:
            case TrialState.COMPLETE:
                state, cost = "complete", trial.value
            case TrialState.PRUNED:
                state, cost = "pruned", _last(trial)
            case TrialState.FAIL if "reason" in attributes:
                state, cost = "failed", None
            case _:
                continue
        result.append(
            Trial(
                number=len(result) + 1,
                state=state,
                settings=dict(trial.params),
                cost=cost,
                error=None if state == "failed" else attributes.get("error"),
                seconds=attributes.get("seconds", 0.0),
                reason=attributes.get("reason"),
            )
        )
    return result


def _last(trial: FrozenTrial) -> float | None:
    step = trial.last_step
    return None if step is None else trial.intermediate_values[step]


def importance(study: optuna.Study) -> dict[str, float]:
    """Return how much each setting matters, by PED-ANOVA."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
