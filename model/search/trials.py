"""Measure the settings of a trial by sequences that its networks have not seen.

Without a validation part they are cross-validated, in processes with one core each; with
one, a network is trained in this process. Neither reads the test part.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np

from model.config import Config
from model.datasets.dataset import PARTS, Dataset
from model.evaluation import calibration, evaluation
from model.training import (
    cross_validation,
    defaults,
    loop,
    steps,
    workers,
)
from model.training.fold import Fold
from model.training.runs import Epoch

FOLDS = 4  # of a trial, unless set: two, which may end it, and two more
FIRST_FOLDS = 2
# A training's own cross-validation has other folds, which chose nothing.
SEED_OFFSET = 500_000_000
STAGES = 10  # of a training with a validation part: it may be stopped after each


class OutOfTimeError(Exception):
    """The time of the search is over."""


class NotFiniteError(ArithmeticError):
    """A network computes numbers that aren't finite."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers for unseen sequences, after calibration.

    Attributes:
        cost: cross entropy, in nats.
        error: in percent.
        temperature: of the calibration, which is fitted on these answers.
    """

    cost: float
    error: float
    temperature: float


class Watch(ABC):
    """Follows a trial, and may end it."""

    @abstractmethod
    def remaining(self) -> float:
        """Return the seconds that are left; may be infinite."""

    @abstractmethod
    def on_progress(self, share: float) -> None:
        """This share of the trial is done. May be called in another thread."""

    @abstractmethod
    def on_stage(self, stage: int, outcome: Outcome) -> None:
        """A stage is complete. May raise `optuna.TrialPruned`, which ends the trial."""

    def check_time(self) -> None:
        """Raise OutOfTimeError if no time is left."""
        if self.remaining() <= 0:
            raise OutOfTimeError


Evaluate = Callable[[Config, Watch], Outcome]


def check(dataset: Dataset, config: Config) -> None:
    """Refuse settings that no trial could be measured with.

    Raises:
        ConfigError: the settings don't fit the data, or there are fewer sequences, or
            groups, than folds.
    """
    resolved = defaults.resolve(config, dataset)
    loop.check(dataset, resolved)
    if not len(dataset.part("validation")):
        cross_validation.check(dataset, fold_settings(config, dataset))
        cross_validation.check(dataset, resolved)  # of the training at the end


@contextmanager
def evaluator(dataset: Dataset, config: Config) -> Iterator[Evaluate]:
    """Yield the function that measures a trial's settings.

    Args:
        config: settings that all trials share, from which the number of folds is taken.

    Raises (the function):
        ConfigError, NotFiniteError, ChildProcessError, tf.errors.OpError, MemoryError: the
            settings can't be trained.
        OutOfTimeError: see `Watch`.
    """
    if len(dataset.part("validation")):
        data = dataset.take(dataset.split != PARTS.index("test"))
        yield _Validation(data).evaluate
    else:
        with _CrossValidation(dataset) as trials:
            yield trials.evaluate


def measure(logits: np.ndarray, targets: np.ndarray) -> Outcome:
    """Calibrate the logits [M, C], and measure them.

    Raises:
        NotFiniteError: a number isn't finite.
    """
    if not np.isfinite(logits).all():
        raise NotFiniteError("the network computes numbers that aren't finite")
    temperature = calibration.fit_temperature(logits, targets)
    return Outcome(
        calibration.cross_entropy(logits, targets, temperature),
        100 * float((logits.argmax(1) != targets).mean()),
        temperature,
    )


class _CrossValidation:
    """Cross-validates on the part "train"."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.train = cross_validation.training_part(dataset)
        self.pool: workers.Workers | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def evaluate(self, config: Config, watch: Watch) -> Outcome:
        """Cross-validate in two stages, the second with the rest of the folds."""
        config = fold_settings(config, self.dataset)
        folds = cross_validation.list_folds(self.train, config)
        stages = [folds[:FIRST_FOLDS]]
        if len(folds) > FIRST_FOLDS:
            stages.append(folds[FIRST_FOLDS:])
        logits: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        pool = self.start(max(map(len, stages)))
        for number, stage in enumerate(stages, 1):
            done = len(logits)
            try:
                logits += self._train(pool, stage, done, len(folds), watch)
            except BaseException:
                self._stop()  # a fold may still be training, or a process has ended
                raise
            targets += [self._targets(fold) for fold in stage]
            outcome = measure(np.concatenate(logits), np.concatenate(targets))
            if number < len(stages):
                watch.on_stage(number, outcome)
        return outcome

    def _train(
        self,
        pool: workers.Workers,
        folds: list[Fold],
        done: int,
        total: int,
        watch: Watch,
    ) -> list[np.ndarray]:
        """Train these folds, and return the logits of each."""
        updates, _ = folds[0].config.training.length(len(self.train))
        counts = [0] * len(folds)

        def report(number: int, count: int) -> None:
            counts[number] = count
            watch.on_progress((done + sum(counts) / updates) / total)
            if not self.processes:  # `submit` waits for the fold
                watch.check_time()

        jobs = [
            pool.submit(fold, partial(report, number))
            for number, fold in enumerate(folds)
        ]
        running = set(jobs)
        while running:
            # Short, so that Ctrl-C is heeded.
            limit = max(0, min(1, watch.remaining()))
            _, running = wait(running, limit, FIRST_COMPLETED)
            if running:
                watch.check_time()
        return [job.result().logits for job in jobs]

    def start(self, most: int) -> workers.Workers:
        """Return the processes. One thread each: the same answers on any machine."""
        if self.pool is None:
            self.processes = workers.available(most, workers.MIN_STEPS)
            self.pool = workers.Workers(self.train, self.processes, threads=1)
            self.pool.__enter__()
        return self.pool

    def _stop(self) -> None:
        if self.pool is not None:
            self.pool.__exit__()
            self.pool = None

    def _targets(self, fold: Fold) -> np.ndarray:
        return self.train.take(fold.held_out).targets


def fold_settings(config: Config, dataset: Dataset) -> Config:
    """Return the settings of a trial's cross-validation, with a value for each."""
    seed = (config.training.seed + SEED_OFFSET) % 2**31
    changes = {"training": {"seed": seed, "repeats": 1}}
    resolved = defaults.resolve(config.update(changes), dataset)
    if "folds" in config.training.model_fields_set:
        return resolved
    folds = min(FOLDS, resolved.training.folds)
    return resolved.update({"training": {"folds": folds}})


class _Validation:
    """Trains on the part "train", and measures on "validation"."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def evaluate(self, config: Config, watch: Watch) -> Outcome:
        config = defaults.resolve(config, self.dataset)
        keras.backend.clear_session()  # the graphs of the last trial
        callback = _Epochs(watch)
        trained = loop.fit(self.dataset, config, callback=callback)
        if trained.interrupted:
            raise KeyboardInterrupt
        part = self.dataset.part("validation")
        predictions = evaluation.predict(part, steps.scorer(trained.network))
        return measure(predictions.scores, predictions.targets)


class _Epochs(loop.Callback):
    """Reports the stages of a training, which are tenths of its epochs."""

    def __init__(self, watch: Watch):
        self.watch, self.stage, self.best = watch, 0, np.inf

    def on_train_begin(self, epochs: int) -> None:
        self.epochs = epochs

    def on_batch_end(self, cost: float, error: float) -> None:
        self.watch.check_time()

    def on_epoch_end(self, epoch: Epoch) -> None:
        share = epoch.epoch / self.epochs
        self.watch.on_progress(share)
        if not np.isfinite(epoch.cost):
            raise NotFiniteError("the cost isn't finite")
        cost, error = epoch.validation_cost, epoch.validation_error
        assert cost is not None
        assert error is not None
        self.best = min(self.best, cost)
        stage = int(share * STAGES)
        if self.stage < stage < STAGES:
            self.stage = stage
            self.watch.on_stage(stage, Outcome(self.best, error, 1.0))
