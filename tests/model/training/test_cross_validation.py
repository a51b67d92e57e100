"""Cross-validation: every sequence is predicted by a network that has not seen it."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from model.evaluation import evaluation
from model.training import cross_validation, fold, loop, steps, workers
from model.training.runs import Run
from tests.support.networks import make_config, make_dataset

SETTINGS = {"updates": 12, "folds": 3, "repeats": 2}


@pytest.fixture(scope="module", params=["classify", "label"])
def data(request):
    return make_dataset(request.param, counts=(24, 0, 9), classes=3)


@pytest.fixture(scope="module")
def config():
    return make_config(training=SETTINGS, network={"dropout": 0.3})


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(workers, "available", lambda *_: 0)


class Recorder(loop.Callback):
    def __init__(self):
        self.begun, self.updates, self.errors = None, [], None

    def on_cross_validation_begin(self, trainings, updates):
        self.begun = trainings, updates

    def on_cross_validation_progress(self, updates):
        self.updates.append(updates)

    def on_cross_validation_end(self, error, folds):
        self.error, self.errors = error, folds


@pytest.mark.usefixtures("one_process")
class TestAnswers:
    def test_out_of_fold(self, data, config, monkeypatch):
        """Each answer is that of a network trained without its sequence, in the order of
        the sequences, for each repetition; the test part is not touched."""
        seen = []

        def train(dataset, job, report):
            report(job.config.training.updates)
            seen.append((len(dataset), job))
            held_out = dataset.take(job.held_out)
            number = float(len(seen))
            logits = np.full((len(held_out.targets), 3), number, np.float32)
            return fold.FoldResult(logits, 0, 0, 0, 12, 0)

        monkeypatch.setattr(fold, "train_fold", train)
        recorder = Recorder()
        result = cross_validation.cross_validate(data, config, callback=recorder)
        assert [size for size, _ in seen] == [24] * 6
        assert len({job.config.training.seed for _, job in seen}) == 6
        train = data.part("train")
        steps_of = train.lengths if data.task == "label" else np.ones(24, int)
        expected = []
        for repeat in range(2):
            number = np.zeros(24)
            for index, (_, job) in enumerate(seen[3 * repeat : 3 * repeat + 3]):
                assert (number[job.held_out] == 0).all()
                number[job.held_out] = 3 * repeat + index + 1
            expected.append(np.repeat(number, steps_of))
        scores = result.predictions.scores
        np.testing.assert_array_equal(scores[:, 0], np.concatenate(expected))
        np.testing.assert_array_equal(
            result.predictions.targets, np.tile(train.targets, 2)
        )
        assert recorder.begun == (6, 12)
        assert recorder.updates[-1] == 6 * 12
        assert recorder.errors == result.errors
        wrong = result.predictions.scores.argmax(1) != result.predictions.targets
        np.testing.assert_allclose(recorder.error, 100 * wrong.mean())
        assert len(result.errors) == 6

    @pytest.mark.slow
    def test_resumed(self, data, config, tmp_path, monkeypatch):
        """Folds that were finished are not trained again, and the answers are the same."""
        run = Run(tmp_path)
        with run.opened(config, data.digest):
            whole = cross_validation.cross_validate(data, config)
            train_fold, count = fold.train_fold, 0

            def stopped(*arguments):
                nonlocal count
                count += 1
                if count == 3:
                    raise KeyboardInterrupt
                return train_fold(*arguments)

            monkeypatch.setattr(fold, "train_fold", stopped)
            with pytest.raises(KeyboardInterrupt):
                cross_validation.cross_validate(data, config, run)
            assert cross_validation.restore(data, config, run) is None
            again = cross_validation.cross_validate(data, config, run)
        assert count == 7  # 2, the one that was stopped, and the 4 others
        restored = cross_validation.restore(data, config, run)
        for result in (again, restored):
            np.testing.assert_array_equal(
                result.predictions.scores, whole.predictions.scores
            )

    @pytest.mark.slow
    def test_fold(self, data, config):
        """A fold's cost and error are those of the network on what it holds out."""
        job = cross_validation.list_folds(cross_validation.training_part(data), config)[
            0
        ]
        train = cross_validation.training_part(data)
        result = fold.train_fold(train, job, lambda updates: None)
        split = np.where(job.held_out, 1, 0)
        trained = loop.fit(
            replace(train, split=np.zeros(24, int)).take(~job.held_out), job.config
        )
        held_out = replace(train, split=split).part("validation")
        predictions = evaluation.predict(held_out, steps.scorer(trained.network))
        np.testing.assert_array_equal(result.logits, predictions.scores)
        parts = loop._Loop(
            replace(train, split=split), job.config, None, loop.Callback()
        )
        for mine, theirs in zip(
            parts.network.variables, trained.network.variables, strict=True
        ):
            mine.assign(theirs)
        cost, error = parts.measure(parts.validation)
        np.testing.assert_allclose((result.cost, result.error), (cost, error), 1e-5)


@pytest.mark.slow
class TestProcesses:
    def test_same_answers(self, config):
        """Processes give the answers that this process gives."""
        data = make_dataset("classify", counts=(24, 0, 0), classes=3)
        train = cross_validation.training_part(data)
        jobs = cross_validation.list_folds(train, config)[:3]
        reports = []
        with workers.Workers(train, 2) as pool:
            futures = [pool.submit(job, reports.append) for job in jobs]
            results = [future.result(120) for future in futures]
        for job, result in zip(jobs, results, strict=True):
            expected = fold.train_fold(train, job, lambda updates: None)
            np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)
        assert reports
        assert all(process.returncode is not None for process in pool._processes)

    def test_failures(self, config):
        """An error of a fold is raised, the process goes on; one that ends is named."""
        train = cross_validation.training_part(
            make_dataset("classify", counts=(24, 0, 0), classes=3)
        )
        job = cross_validation.list_folds(train, config)[0]
        wrong = replace(
            job, config=job.config.update({"augmentation": {"image": (9, 9)}})
        )
        with workers.Workers(train, 1) as pool:
            with pytest.raises(ValueError, match=r"augmentation\.image"):
                pool.submit(wrong).result(120)
            assert pool.submit(job).result(120).updates == 12
            (process,) = pool._processes
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(ChildProcessError, match="exit code -9"):
                pool.submit(job).result(120)
