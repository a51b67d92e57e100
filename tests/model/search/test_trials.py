"""Measure the settings of a trial on unseen sequences."""

import threading
from dataclasses import replace

import numpy as np
import optuna
import pytest

from model.evaluation import calibration
from model.search import trials
from model.search.trials import NotFiniteError, Outcome, OutOfTimeError
from model.training import cross_validation, fold, workers
from tests.support.networks import make_config, make_dataset


class Watch(trials.Watch):
    """Records the stages; may prune at one, or run out of time."""

    def __init__(self, prune=None, seconds=float("inf")):
        self.prune, self.seconds = prune, seconds
        self.stages, self.shares = [], []

    def remaining(self):
        return self.seconds

    def on_progress(self, share):
        self.shares.append(share)

    def on_stage(self, stage, outcome):
        self.stages.append((stage, outcome))
        if stage == self.prune:
            raise optuna.TrialPruned


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(workers, "available", lambda *_: 0)


@pytest.fixture
def logits(monkeypatch):
    """Folds whose answers are made up, and the folds that were trained."""
    calls = []

    def train(dataset, job, report):
        calls.append(job)
        report(1)
        targets = dataset.take(job.held_out).targets
        scores = np.random.default_rng(len(calls)).normal(size=(len(targets), 3))
        scores += 2 * np.eye(3)[targets]
        return fold.FoldResult(scores.astype(np.float32), 0, 0, 0, 3, 0)

    monkeypatch.setattr(fold, "train_fold", train)
    return calls


def evaluate(dataset, config, watch):
    with trials.evaluator(dataset, config) as measure:
        return measure(config, watch)


def test_measure():
    """Cost and error are those of the calibrated answers."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 200)
    logits = 5 * (random.normal(size=(200, 3)) + np.eye(3)[targets])
    outcome = trials.measure(logits, targets)
    probabilities = calibration.softmax(logits / outcome.temperature)
    right = probabilities[np.arange(200), targets]
    assert outcome.cost == pytest.approx(-np.log(right).mean())
    assert outcome.error == pytest.approx(100 * (logits.argmax(1) != targets).mean())
    assert outcome.temperature > 2
    logits[3, 1] = np.nan
    with pytest.raises(NotFiniteError):
        trials.measure(logits, targets)


@pytest.mark.usefixtures("one_process")
class TestCrossValidation:
    def test_stages(self, logits):
        """Two folds are measured first, and then all; each sequence is predicted once,
        in folds that the training's own cross-validation doesn't have."""
        dataset, config = make_dataset(counts=(24, 0, 9)), make_config()
        watch = Watch()
        outcome = evaluate(dataset, config, watch)
        assert len(logits) == trials.FOLDS
        assert (sum(job.held_out for job in logits) == 1).all()
        ((stage, first),) = watch.stages
        assert stage == 1
        assert first != outcome
        assert watch.shares == sorted(watch.shares)
        settings = config.update({"training": {"folds": trials.FOLDS, "repeats": 1}})
        train = cross_validation.training_part(dataset)
        own = cross_validation.list_folds(train, settings)
        for job in logits:
            assert not any((job.held_out == other.held_out).all() for other in own)

    def test_folds_that_are_set(self, logits):
        """A number of folds that the user has set counts; repetitions don't."""
        for folds in (2, 3):
            logits.clear()
            config = make_config(training={"folds": folds, "repeats": 5})
            evaluate(make_dataset(counts=(24, 0, 0)), config, Watch())
            assert len(logits) == folds

    def test_few_groups(self, logits):
        """Of three groups each fold leaves one out."""
        dataset = make_dataset(counts=(24, 0, 0))
        dataset = replace(dataset, groups=np.arange(24) % 3)
        evaluate(dataset, make_config(), Watch())
        held_out = [set(dataset.groups[job.held_out].tolist()) for job in logits]
        assert sorted(held_out, key=min) == [{0}, {1}, {2}]

    def test_pruned(self, logits):
        """A trial that is pruned after the first stage trains no other folds."""
        with pytest.raises(optuna.TrialPruned):
            evaluate(make_dataset(counts=(24, 0, 9)), make_config(), Watch(prune=1))
        assert len(logits) == trials.FIRST_FOLDS

    def test_out_of_time(self, logits):
        """A fold ends when the time is over."""
        with pytest.raises(OutOfTimeError):
            evaluate(make_dataset(counts=(24, 0, 9)), make_config(), Watch(seconds=0))
        assert len(logits) == 1


@pytest.mark.slow
class TestValidation:
    def test_epochs(self):
        """The validation part is measured, and a training is pruned between epochs."""
        dataset = make_dataset(counts=(24, 12, 9))
        config = make_config(training={"epochs": 20, "patience": 20})
        watch = Watch()
        outcome = evaluate(dataset, config, watch)
        assert isinstance(outcome, Outcome)
        assert np.isfinite(outcome.cost)
        stages = [stage for stage, _ in watch.stages]
        assert stages == list(range(1, trials.STAGES))
        costs = [outcome.cost for _, outcome in watch.stages]
        assert costs == sorted(costs, reverse=True)
        assert watch.shares[-1] == 1
        with pytest.raises(optuna.TrialPruned):
            evaluate(dataset, config, watch := Watch(prune=2))
        assert len(watch.stages) == 2
        with pytest.raises(OutOfTimeError):
            evaluate(dataset, config, Watch(seconds=0))


@pytest.mark.slow
def test_processes(monkeypatch):
    """Processes give the answers that this one gives; time ends them at once, and the
    next trial gets new ones. A process that was killed fails one trial only."""
    dataset, config = make_dataset(counts=(24, 0, 9)), make_config()
    monkeypatch.setattr(workers, "available", lambda *_: 0)
    expected = evaluate(dataset, config, Watch())
    monkeypatch.setattr(workers, "available", lambda *_: 2)
    with trials.evaluator(dataset, config) as measure:
        outcome = measure(config, Watch())
        assert outcome.cost == pytest.approx(expected.cost, abs=1e-4)
        long = make_config(training={"epochs": 100_000})
        watch = Watch()
        timer = threading.Timer(4, setattr, (watch, "seconds", 0))
        timer.start()
        with pytest.raises(OutOfTimeError):
            measure(long, watch)
        timer.join()
        pool = measure.__self__.start(2)
        for process in pool._processes:
            process.kill()
        with pytest.raises(ChildProcessError, match="exit code -9"):
            measure(config, Watch())
        assert measure(config, Watch()) == outcome
