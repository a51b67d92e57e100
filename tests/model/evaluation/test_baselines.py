"""The baselines: right where no recurrence is needed, wrong where it is, and bounded."""

from dataclasses import replace

import numpy as np
import pytest

from model.datasets.dataset import TEST, TRAIN, VALIDATION
from model.evaluation import baselines, evaluation
from tests.support.networks import make_dataset

COUNTS = (120, 30, 60)


def predictions(dataset, share):
    """Answers of a network that has a share of the sequences or steps right."""
    random = np.random.default_rng(0)
    targets = dataset.targets
    right = random.uniform(size=len(targets)) < share
    codes = np.where(right, targets, (targets + 1) % len(dataset.classes))
    scores = np.eye(len(dataset.classes))[codes]
    groups = evaluation.answer_groups(dataset)
    return evaluation.Predictions(scores, targets, targets, groups)


def compare(dataset, share=0.9):
    """The baselines of the test part."""
    answers = {"test": predictions(dataset.part("test"), share)}
    return baselines.evaluate(dataset, answers)["test"]


def by_frames(dataset, frames, targets):
    return replace(dataset, frames=frames.astype(np.float32), targets=targets)


class TestClassify:
    def test_mean(self):
        """Logistic regression learns classes that differ in the mean."""
        data = make_dataset(counts=COUNTS)
        shift = np.repeat(data.targets, data.lengths)[:, None] * 3.0
        random = np.random.default_rng(0)
        data = by_frames(
            data, random.normal(size=data.frames.shape) + shift, data.targets
        )
        result = compare(data, 0.5)
        assert list(result) == ["logistic_regression", "majority"]
        logistic = result["logistic_regression"]
        assert logistic.error < 10
        assert (logistic.count, logistic.learnt) == (60, 120)
        assert logistic.interval[0] <= logistic.error <= logistic.interval[1]
        assert logistic.difference.worse
        assert not logistic.difference.better

    def test_order(self):
        """It can't learn the order of the frames in the middle, which a network can."""
        data = make_dataset(counts=COUNTS, classes=2)
        lengths = np.full(len(data), 8)
        targets = np.random.default_rng(0).integers(2, size=len(data))
        waves = np.where(
            targets[:, None], [0, 1, 1, 0, 0, -1, -1, 0], [0, -1, -1, 0, 0, 1, 1, 0]
        )
        frames = np.repeat(waves.reshape(-1, 1), 3, 1).astype(np.float32)
        data = replace(data, frames=frames, lengths=lengths, targets=targets)
        result = compare(data, 0.95)
        assert result["logistic_regression"].error > 25
        assert result["logistic_regression"].difference.better

    def test_majority(self):
        """The majority class is that of the training part, also where it is rare."""
        data = make_dataset(counts=COUNTS, classes=2)
        targets = np.where(data.split == TEST, 1, 0)
        targets[np.flatnonzero(data.split == TRAIN)[0]] = 1
        data = replace(data, targets=targets)
        assert compare(data)["majority"].error == 100

    def test_inputs(self):
        """They are the mean, the deviation, the first and the last frame."""
        data = make_dataset(counts=(4, 0, 0))
        rows = baselines.inputs(data)
        for index, row in enumerate(rows):
            frames = data.sequence(index)
            expected = [frames.mean(0), frames.std(0), frames[0], frames[-1]]
            np.testing.assert_allclose(row, np.concatenate(expected), atol=1e-5)


class TestLabel:
    def test_neighbours(self):
        """A step is read with its neighbours in the sequence, itself at the ends."""
        data = make_dataset("label", counts=(4, 0, 0))
        rows, place = baselines.inputs(data), 0
        for index in range(len(data)):
            frames = data.sequence(index)
            for step in range(len(frames)):
                around = (max(step - 1, 0), step, min(step + 1, len(frames) - 1))
                np.testing.assert_array_equal(
                    rows[place], np.concatenate(frames[[*around]])
                )
                place += 1

    def test_next_frame(self):
        """Labels that the next frame shows are learnt."""
        data = make_dataset("label", counts=COUNTS, classes=2)
        ahead = np.append(data.frames[1:, 0], 0)
        targets = (ahead > np.median(ahead)).astype(int)
        result = compare(replace(data, targets=targets), 0.5)
        assert result["logistic_regression"].error < 30
        assert result["logistic_regression"].count == data.part("test").lengths.sum()
        assert result["majority"].error > 40


class TestCrossValidation:
    @pytest.mark.parametrize("task", ["classify", "label"])
    def test_folds(self, task):
        """Each fold is predicted from the others, in each repetition."""
        data = make_dataset(task, counts=(60, 0, 0), classes=2)
        # Each fold has a class of its own: from the others nothing can be learnt.
        fold = np.arange(60) % 2
        steps = data.lengths if task == "label" else 1
        data = replace(data, targets=np.repeat(fold, steps))
        single = predictions(data, 0.9)
        twice = evaluation.Predictions(
            *(
                np.concatenate([a, a])
                for a in (single.scores, single.targets, single.lengths)
            ),
            np.tile(single.groups, 2),
        )
        held_out = [fold == 0, fold == 1] * 2
        result = baselines.evaluate(data, {"cross_validation": twice}, held_out)
        assert list(result["cross_validation"]) == ["majority"]
        assert result["cross_validation"]["majority"].error == 100
        assert result["cross_validation"]["majority"].count == 2 * len(single.targets)

        held_out = [np.arange(60) // 2 % 2 == n for n in (0, 1)] * 2
        mixed = baselines.evaluate(data, {"cross_validation": twice}, held_out)
        assert set(mixed["cross_validation"]) == {"logistic_regression", "majority"}


class TestBounds:
    @pytest.mark.parametrize("task", ["classify", "label"])
    def test_samples(self, task, monkeypatch):
        """Of a large part a sample is learnt from and answered, as is counted."""
        data = make_dataset(task, counts=COUNTS)
        monkeypatch.setattr(baselines, "MAX_SEQUENCES", 40)
        monkeypatch.setattr(baselines, "MAX_STEPS", 200)
        result = compare(data)["majority"]
        most = 40 if task == "classify" else 200
        assert most / 2 < result.learnt <= most
        assert most / 2 < result.count <= most
        monkeypatch.setattr(baselines, "MAX_NUMBERS", 1)  # at least one sequence
        assert compare(data)["majority"].count >= 1

    def test_parts(self):
        """The part for training is not compared; without others there is nothing."""
        data = make_dataset(counts=COUNTS)
        answers = {
            name: predictions(data.part(name), 0.9)
            for name in ("train", "validation", "test")
        }
        assert set(baselines.evaluate(data, answers)) == {"validation", "test"}
        assert baselines.evaluate(data, {"train": answers["train"]}) == {}
        assert VALIDATION in data.split

    def test_failure(self, monkeypatch, caplog):
        """A baseline that fails leaves the report without baselines, and says why."""

        def fail(dataset):
            raise MemoryError("too large")

        monkeypatch.setattr(baselines, "inputs", fail)
        data = make_dataset(counts=COUNTS)
        answers = {"test": predictions(data.part("test"), 0.9)}
        assert baselines.evaluate(data, answers) == {}
        assert "no baselines: too large" in caplog.text
