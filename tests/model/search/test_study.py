"""The study of a search: its order, cuts, limits and failures. Trials are made up, except
where the data is the subject."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from model.config import Config, ConfigError
from model.search import study, trials
from model.search.folder import MIN_COMPLETE
from model.search.trials import Outcome
from model.training import workers
from model.training.runs import Run
from tests.support.networks import make_config, make_dataset

SEARCHED = {"learning_rate", "dropout", "hidden", "batch"}


class Killed(BaseException):
    """The process ends, here."""


class Evaluator:
    """Makes up the outcomes of trials: the lower the rate, the better."""

    def __init__(self):
        self.configs, self.actions = [], {}

    @contextlib.contextmanager
    def __call__(self, dataset, config):
        yield self.evaluate

    def evaluate(self, config, watch):
        self.configs.append(config)
        action = self.actions.pop(len(self.configs), None)
        if action is not None:
            action(watch)
        cost = 100 * config.training.learning_rate + config.network.dropout / 10
        watch.on_stage(1, Outcome(cost + 0.1, 50, 1.0))
        watch.on_progress(0.5)
        return Outcome(cost, 10 * cost, 1.5)


@pytest.fixture
def evaluator(monkeypatch):
    evaluator = Evaluator()
    monkeypatch.setattr(trials, "evaluator", evaluator)
    return evaluator


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(counts=(24, 0, 9))


def fixed_but(*names):
    """The names of all settings but these."""
    config = Config()
    sections = (config.data, config.network, config.training, config.augmentation)
    return {n for section in sections for n in type(section).model_fields} - {*names}


def run(dataset, folder, most=None, config=None, minutes=None, **options):
    return study.search(
        dataset,
        config or Config(name="made"),
        Run(folder),
        fixed=options.pop("fixed", fixed_but(*SEARCHED)),
        minutes=minutes,
        most=most,
        **options,
    )


def results(search):
    return [(t.number, t.state, t.settings, t.cost, t.error) for t in search.trials]


def fail(watch):
    raise MemoryError("no room\nand a long text")


class TestResults:
    def test_best(self, dataset, tmp_path, evaluator):
        """The best trial is the complete one of the lowest cost, and its settings are the
        result; all trials keep the settings that are not searched."""
        search = run(dataset, tmp_path, 12)
        assert len(search.trials) == 12
        complete = [t for t in search.trials if t.state == "complete"]
        assert search.best.cost == min(t.cost for t in complete)
        config = evaluator.configs[search.best.number - 1]
        assert search.config == config
        assert search.best.error == pytest.approx(10 * search.best.cost)
        assert search.trials[0].settings["learning_rate"] == 0.01
        assert all(set(t.settings) == SEARCHED for t in search.trials)
        assert len({str(t.settings) for t in search.trials}) == 12

    def test_prunes(self, dataset, tmp_path, evaluator):
        """Trials that are worse than half of the complete ones at that stage are stopped,
        once there are some; their costs are those of the stage."""
        search = run(dataset, tmp_path, 25)
        states = [t.state for t in search.trials]
        assert "pruned" not in states[:MIN_COMPLETE]
        pruned = [t for t in search.trials if t.state == "pruned"]
        assert pruned
        for trial in pruned:
            earlier = [
                t.cost + 0.1
                for t in search.trials[: trial.number - 1]
                if t.state == "complete"
            ]
            assert trial.cost > np.median(earlier)
            assert trial.error == 50

    @pytest.mark.slow
    def test_importance(self, dataset, tmp_path, evaluator):
        """The setting that decides the cost is the most important one."""
        search = run(dataset, tmp_path, 28)
        assert max(search.importance, key=search.importance.get) == "learning_rate"
        assert sum(search.importance.values()) == pytest.approx(1)
        assert run(dataset, tmp_path / "few", 5).importance == {}

    def test_same_seed(self, dataset, tmp_path, evaluator):
        """The same seed and number of trials give the same study; another seed another."""
        first, again = (run(dataset, tmp_path / name, 14) for name in "ab")
        assert results(first) == results(again)
        config = Config(name="made", training={"seed": 1})
        other = run(dataset, tmp_path / "c", 14, config)
        assert results(first)[:3] == results(other)[:3]  # those that are set
        assert results(first) != results(other)


class TestCuts:
    def test_killed(self, dataset, tmp_path, evaluator):
        """A search that was killed during some trials and resumed is the same as an uncut
        one: no finished trial is lost, and those that were cut off begin again."""
        whole = run(dataset, tmp_path / "whole", 14)
        number, resume = 0, False
        for number in (1, 3, 8):

            def kill(watch):
                watch.on_stage(1, Outcome(-9.0, 9.0, 1.0))
                raise Killed

            evaluator.configs.clear()
            evaluator.actions = {number: kill}
            with pytest.raises(Killed):
                run(dataset, tmp_path / "cut", 14, resume=resume)
            resume = True
        evaluator.configs.clear()
        resumed = run(dataset, tmp_path / "cut", 14, resume=True)
        assert len(evaluator.configs) == 14 - 0 - 2 - 7
        assert results(resumed) == results(whole)

    def test_torn_line(self, dataset, tmp_path, evaluator):
        """A line that a killed process wrote in part, and its lock, do no harm."""
        whole = run(dataset, tmp_path / "whole", 9)
        run(dataset, tmp_path / "cut", 6)
        journal = tmp_path / "cut" / "search" / "study.log"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines) + lines[-1][:9])
        journal.with_name("study.log.lock").touch()
        resumed = run(dataset, tmp_path / "cut", 9, resume=True)
        assert results(resumed) == results(whole)

    def test_ctrl_c(self, dataset, tmp_path, evaluator):
        """Ctrl-C ends the search and keeps its trials."""

        def press(watch):
            raise KeyboardInterrupt

        evaluator.actions = {4: press}
        search = run(dataset, tmp_path, 9)
        assert search.interrupted
        assert len(search.trials) == 3
        again = run(dataset, tmp_path, minutes=0, resume=True)
        assert results(again) == results(search)
        assert not again.interrupted

    def test_replaced(self, dataset, tmp_path, evaluator):
        """Without resume an older search is replaced."""
        run(dataset, tmp_path, 6)
        assert len(run(dataset, tmp_path, 2).trials) == 2

    def test_resume_needs_the_same(self, dataset, tmp_path, evaluator):
        """Other data, other settings and another space are refused by name, and change
        nothing; other data of the test part doesn't matter."""
        with pytest.raises(ConfigError, match="holds no search"):
            run(dataset, tmp_path, 3, resume=True)
        before = run(dataset, tmp_path, 3)
        frames = dataset.frames.copy()
        frames[0] += 1
        with pytest.raises(ConfigError, match="other data"):
            run(replace(dataset, frames=frames), tmp_path, 4, resume=True)
        config = Config(name="made", training={"seed": 4})
        with pytest.raises(ConfigError, match=r"other settings \(training.seed\)"):
            run(dataset, tmp_path, 4, config, resume=True)
        fixed = fixed_but("learning_rate", "dropout")
        with pytest.raises(ConfigError, match="bounds of hidden, bounds of batch"):
            run(dataset, tmp_path, 4, fixed=fixed, resume=True)
        frames = dataset.frames.copy()
        frames[dataset.offsets[24] :] += 1
        after = run(replace(dataset, frames=frames), tmp_path, 3, resume=True)
        assert results(after) == results(before)


class TestLimits:
    def test_time(self, dataset, tmp_path, evaluator, monkeypatch):
        """A trial that isn't finished in time is dropped, unless it would be the first."""
        now = 0.0
        monkeypatch.setattr(study.time, "monotonic", lambda: now)

        def wait(watch):
            nonlocal now
            now += 50
            watch.check_time()

        evaluator.actions = dict.fromkeys(range(1, 9), wait)
        assert len(run(dataset, tmp_path, minutes=2).trials) == 2
        evaluator.configs.clear()
        evaluator.actions = {1: wait}
        assert len(run(dataset, tmp_path, minutes=0.5).trials) == 1

    def test_no_trial(self, dataset, tmp_path, evaluator):
        """A search without a complete trial has no settings to train with."""
        search = run(dataset, tmp_path, minutes=0)
        assert search.best is None
        with pytest.raises(ConfigError, match="no trial is complete"):
            assert search.config

    def test_nothing_to_search(self, dataset, tmp_path, evaluator):
        """If all settings are fixed there is nothing to do."""
        with pytest.raises(ConfigError, match="nothing to search"):
            run(dataset, tmp_path, 3, fixed=fixed_but())
        assert not (tmp_path / "search").exists()

    def test_locked(self, dataset, tmp_path, evaluator):
        """Another search or training in the folder is refused; in other folders both run."""

        def again(watch):
            with pytest.raises(ConfigError, match="another training is writing"):
                run(dataset, tmp_path / "a", 1)
            run(dataset, tmp_path / "b", 1)

        evaluator.actions = {1: again}
        assert len(run(dataset, tmp_path / "a", 3).trials) == 3


class TestFailures:
    def test_failed(self, dataset, tmp_path, evaluator):
        """A trial that can't be trained is kept with the reason, and others follow."""
        evaluator.actions = {2: fail}
        search = run(dataset, tmp_path, 5)
        assert [t.state for t in search.trials].count("failed") == 1
        trial = search.trials[1]
        assert (trial.cost, trial.error) == (None, None)
        assert trial.reason == "MemoryError: no room"

    def test_all_failed(self, dataset, tmp_path, evaluator):
        """The search ends if the first three fail."""
        evaluator.actions = dict.fromkeys((1, 2, 3), fail)
        with pytest.raises(ConfigError, match="first 3 trials failed: MemoryError: no"):
            run(dataset, tmp_path, 9)
        assert len(evaluator.configs) == 3


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(24, 0, 9), (24, 9, 9)])
def test_test_part_is_not_used(counts, tmp_path, monkeypatch):
    """Other sequences in the test part give the same study, cross-validated or not."""
    monkeypatch.setattr(workers, "available", lambda *_: 0)
    dataset = make_dataset(counts=counts)
    config = make_config(training={"epochs": 2})
    frames = dataset.frames.copy()
    frames[dataset.offsets[sum(counts[:2])] :] = 1e30
    studies = [
        run(data, tmp_path / name, 3, config, fixed=fixed_but("learning_rate", "cell"))
        for name, data in {
            "a": dataset,
            "b": replace(dataset, frames=frames),
        }.items()
    ]
    assert [t.state for t in studies[0].trials] == ["complete"] * 3
    assert results(studies[0]) == results(studies[1])
