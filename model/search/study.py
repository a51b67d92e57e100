"""Run a search: Optuna chooses the settings of each trial by the results of the others.

The study is the same for the same data, settings, seed and number of trials, however often
the search was cut off and resumed: the choice of a trial depends on its number and on the
results of those before it.
"""

import math
import time
import warnings
from collections.abc import Collection
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from model.config import Config, ConfigError
from model.datasets.dataset import Dataset
from model.search import space as spaces
from model.search import trials
from model.search.folder import open_study
from model.search.results import Search, Trial, best, importance, list_trials
from model.search.space import Space
from model.search.trials import Outcome, OutOfTimeError
from model.training.runs import Run

FOLDER = "search"  # in the run's
MOST_FAILED = 3  # at the beginning, in a row


class Callback:
    """Events of a search; override those of interest."""

    def on_search_begin(
        self, space: Space, finished: list[Trial], seconds: float, trials: int | None
    ) -> None:
        """The search begins or continues, for so many seconds, to so many trials."""

    def on_trial_begin(self, number: int, settings: dict[str, Any]) -> None:
        """A trial begins."""

    def on_progress(self, share: float) -> None:
        """This share of the trial is done. May be called in another thread."""

    def on_trial_end(self, trial: Trial) -> None:
        """A trial is finished and saved."""


def search(
    dataset: Dataset,
    config: Config,
    run: Run,
    *,
    fixed: Collection[str],
    minutes: float | None,
    most: int | None = None,
    resume: bool = False,
    callback: Callback | None = None,
) -> Search:
    """Search until the time is over, or so many trials are finished.

    Ctrl-C ends it, too. Whatever ends it, the finished trials are in the run's folder.

    Args:
        config: the settings to start from.
        run: the folder of the run, in which the study gets one of its own.
        fixed: names of the settings that are not searched.
        minutes: for this call; a trial that is not finished then is dropped, unless
            it would be the first complete one.
        most: trials, with those before a resume.
        resume: continue the study in the folder; otherwise it is replaced.

    Raises:
        ConfigError: the settings are invalid for the data; nothing is left to search; the
            folder holds no such study, or is in use; or the first trials all failed.
    """
    space = spaces.build(config, dataset, fixed)
    if not space.distributions:
        raise ConfigError("nothing to search: each setting that it varies is set")
    trials.check(dataset, config)
    folder = run.folder / FOLDER
    with run.locked(), trials.evaluator(dataset, config) as evaluate:
        study = open_study(folder, space, dataset, resume=resume)
        loop = _Loop(study, space, callback or Callback(), minutes, most)
        interrupted = False
        try:
            loop.run(evaluate)
        except KeyboardInterrupt:
            interrupted = True
        finished = tuple(list_trials(study))
        return Search(folder, space, finished, importance(study), interrupted)


class _Loop(trials.Watch):
    """Trials, one after another; follows the one that runs."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        callback: Callback,
        minutes: float | None,
        most: int | None,
    ):
        self.study, self.space, self.callback = study, space, callback
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.most, self.begun = most, time.monotonic()
        self.trial: optuna.Trial | None = None
        self.required = False  # the trial may take longer

    def run(self, evaluate: trials.Evaluate) -> None:
        """Run trials until the search is over."""
        finished = list_trials(self.study)
        self.callback.on_search_begin(self.space, finished, self.seconds, self.most)
        while self.remaining() > 0 and len(finished) < (self.most or math.inf):
            # The first ones are the defaults: a short search ends with them.
            self.required = best(finished) is None
            try:
                self._run_trial(len(finished), evaluate)
            except OutOfTimeError:
                break
            finally:
                self.required = False
            finished = list_trials(self.study)
            self.callback.on_trial_end(finished[-1])
            _check_failures(finished)

    def remaining(self) -> float:
        if self.required:
            return math.inf
        return self.begun + self.seconds - time.monotonic()

    def on_progress(self, share: float) -> None:
        self.callback.on_progress(share)

    def on_stage(self, stage: int, outcome: Outcome) -> None:
        assert self.trial is not None
        self.trial.set_user_attr("error", outcome.error)
        self.trial.report(outcome.cost, stage)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def _run_trial(self, number: int, evaluate: trials.Evaluate) -> None:
        """Choose the settings of the next trial, measure them, and save the result.

        The trial stays unfinished if Ctrl-C, or the time, ends it.
        """
        self.trial = trial = _ask(self.study, self.space, number)
        begun = time.monotonic()
        self.callback.on_trial_begin(number + 1, trial.params)
        state, value = TrialState.COMPLETE, None
        try:
            outcome = evaluate(self.space.settings(trial.params), self)
            value = outcome.cost
            trial.set_user_attr("error", outcome.error)
            trial.set_user_attr("temperature", outcome.temperature)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except OutOfTimeError:
            raise
        except Exception as error:  # whatever TensorFlow raises, too
            state = TrialState.FAIL
            trial.set_user_attr("reason", _reason(error))
        trial.set_user_attr("seconds", time.monotonic() - begun)
        self.study.tell(trial, value, state)


def _reason(error: Exception) -> str:
    """Return the first line of an error, as of TensorFlow's long ones."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__


def _check_failures(finished: list[Trial]) -> None:
    """Refuse to go on if none of the first trials could be trained."""
    if len(finished) == MOST_FAILED and all(t.state == "failed" for t in finished):
        raise ConfigError(
            f"the first {MOST_FAILED} trials failed: {finished[-1].reason}"
        )


def _ask(study: optuna.Study, space: Space, number: int) -> optuna.Trial:
    """Choose the settings of a trial; the same for the same number and results."""
    seed = (space.config.training.seed * 100_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=False,
            n_startup_trials=len(space.starts),
        )
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if number < len(space.starts) and not waiting:
        study.enqueue_trial(space.starts[number])
    return study.ask(space.distributions)
