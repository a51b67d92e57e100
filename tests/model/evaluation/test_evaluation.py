"""The metrics of a part, against plain loops."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from model.datasets.dataset import TASKS
from model.evaluation import calibration, evaluation
from model.evaluation.evaluation import Predictions
from tests.support.networks import make_dataset

CLASSES = ("ant", "bee", "cat", "dog")


def make_answers(count=300, *, absent=(), seed=0):
    """Random predictions, most of them right; no target is one of `absent`."""
    random = np.random.default_rng(seed)
    there = [code for code in range(4) if CLASSES[code] not in absent]
    targets = random.choice(there, count)
    logits = random.normal(size=(count, 4))
    logits[np.arange(count), targets] += 1.5
    lengths = random.integers(1, 30, count)
    return Predictions(calibration.softmax(logits), targets, lengths)


def pairs(predictions):
    """(true, predicted) class numbers."""
    predicted = [int(np.argmax(row)) for row in predictions.scores]
    return list(zip(predictions.targets.tolist(), predicted, strict=True))


def naive_f1(predictions, code):
    both = sum(true == guess == code for true, guess in pairs(predictions))
    guessed = sum(guess == code for _, guess in pairs(predictions))
    actual = sum(true == code for true, _ in pairs(predictions))
    if not both:
        return 0.0
    precision, recall = both / guessed, both / actual
    return 2 * precision * recall / (precision + recall)


class TestMeasure:
    @pytest.mark.parametrize("absent", [(), ("cat",), ("ant", "dog")])
    def test_naive(self, absent):
        """Every figure is that of a plain loop; a class that is absent counts not."""
        predictions = make_answers(absent=absent)
        metrics = evaluation.compute_metrics(predictions, CLASSES)
        wrong = sum(true != guess for true, guess in pairs(predictions))
        assert metrics.count == 300
        np.testing.assert_allclose(metrics.error, 100 * wrong / 300)
        np.testing.assert_allclose(metrics.accuracy, 100 - 100 * wrong / 300)
        present = [code for code in range(4) if CLASSES[code] not in absent]
        np.testing.assert_allclose(
            metrics.macro_f1, 100 * np.mean([naive_f1(predictions, c) for c in present])
        )
        for true in range(4):
            of_class = [guess for t, guess in pairs(predictions) if t == true]
            for guess in range(4):
                assert metrics.confusion[true][guess] == of_class.count(guess)
            accuracy = metrics.class_accuracy[CLASSES[true]]
            named = metrics.by_class[CLASSES[true]]
            assert named.recall == accuracy
            assert named.count == sum(metrics.confusion[true])
            guessed = [guess for _, guess in pairs(predictions)].count(true)
            share = 100 * metrics.confusion[true][true] / guessed
            np.testing.assert_allclose(named.precision, share)
            if true in present:
                f1 = 100 * naive_f1(predictions, true)
                np.testing.assert_allclose(named.f1, f1)
            if CLASSES[true] in absent:
                assert accuracy is None
            else:
                want = 100 * of_class.count(true) / len(of_class)
                np.testing.assert_allclose(accuracy, want)

    def test_calibration(self):
        """Calibration is measured on the same probabilities, in percent."""
        predictions = make_answers()
        metrics = evaluation.compute_metrics(predictions, CLASSES)
        error = calibration.expected_calibration_error(
            predictions.scores, predictions.targets
        )
        np.testing.assert_allclose(metrics.calibration_error, 100 * error)
        assert sum(entry["count"] for entry in metrics.reliability) == 300

    def test_by_length(self):
        """Groups of lengths lie apart and hold every answer once."""
        for count in (1, 2, 9, 300):
            predictions = make_answers(count)
            groups = evaluation.compute_metrics(predictions, CLASSES).by_length
            assert 1 <= len(groups) <= 10
            assert sum(group["count"] for group in groups) == count
            edges = [
                e for group in groups for e in (group["shortest"], group["longest"])
            ]
            assert edges == sorted(edges)
            right = np.array([true == guess for true, guess in pairs(predictions)])
            for group in groups:
                low, high = group["shortest"], group["longest"]
                inside = (predictions.lengths >= low) & (predictions.lengths <= high)
                assert inside.sum() == group["count"]
                np.testing.assert_allclose(
                    group["accuracy"], 100 * right[inside].mean()
                )

    def test_one_length(self):
        """Sequences of one length are one group."""
        predictions = replace(make_answers(50), lengths=np.full(50, 7))
        (group,) = evaluation.compute_metrics(predictions, CLASSES).by_length
        assert (group["shortest"], group["longest"], group["count"]) == (7, 7, 50)

    def test_perfect(self):
        """All right is 0 % error and 100 % of the rest."""
        scores = np.eye(4, dtype=np.float32)
        predictions = Predictions(scores, np.arange(4), np.ones(4, int))
        metrics = evaluation.compute_metrics(predictions, CLASSES)
        assert (metrics.error, metrics.accuracy, metrics.macro_f1) == (0, 100, 100)
        assert metrics.calibration_error == 0
        assert metrics.confusion == np.eye(4, dtype=int).tolist()

    def test_as_json(self):
        """The metrics are plain values that JSON takes and gives back."""
        metrics = evaluation.compute_metrics(make_answers(absent=("bee",)), CLASSES)
        values = asdict(metrics)
        assert json.loads(json.dumps(values, allow_nan=False)) == values

    def test_groups(self):
        """Answers that a group has all right or all wrong make wider intervals, and a
        group is the sequence of a step or what the data names."""
        answers = make_answers(30)
        many = Predictions(
            *(np.repeat(a, 10, 0) for a in (answers.scores, answers.targets)),
            np.full(300, 10),
        )
        steps = replace(many, groups=np.repeat(np.arange(30), 10))
        apart, together = (
            evaluation.compute_metrics(p, CLASSES).intervals for p in (many, steps)
        )
        for key in ("error", "macro_f1", "calibration_error"):
            (low, high), (lower, higher) = getattr(apart, key), getattr(together, key)
            assert higher - lower > 1.5 * (high - low)

        assert evaluation.compute_metrics(steps, CLASSES).groups is None
        named = replace(steps, grouped=True)
        assert evaluation.compute_metrics(named, CLASSES).groups == 30

        data = make_dataset("label", counts=(5, 0, 0))
        numbers = evaluation.answer_groups(data)
        np.testing.assert_array_equal(numbers, np.repeat(np.arange(5), data.lengths))
        data = replace(data, groups=np.array([*"babab"]))
        numbers = evaluation.answer_groups(data)
        np.testing.assert_array_equal(numbers, np.repeat([1, 0, 1, 0, 1], data.lengths))


class TestAnswer:
    def test_order(self):
        """Answers come in the order of the data, whatever the batches were."""
        for task in TASKS:
            data = make_dataset(task, counts=(300, 0, 0))  # more than two batches
            batches = []

            def sums(frames, lengths, task=task, batches=batches):
                """Scores that identify the row and the step."""
                batches.append(len(lengths))
                if task == "classify":
                    return np.stack([frames.sum((1, 2)), lengths], 1)
                steps = np.broadcast_to(lengths[:, None], frames.shape[:2])
                return np.stack([frames.sum(2), steps], 2)

            predictions = evaluation.predict(data, sums)
            assert max(batches) <= evaluation.BATCH_SIZE
            assert len(batches) == 3
            np.testing.assert_array_equal(predictions.targets, data.targets)
            if task == "classify":
                want = [data.sequence(row).sum() for row in range(len(data))]
                lengths = data.lengths
            else:
                want = data.frames.sum(1)
                lengths = np.repeat(data.lengths, data.lengths)
            np.testing.assert_allclose(predictions.scores[:, 0], want, atol=1e-4)
            np.testing.assert_array_equal(predictions.scores[:, 1], lengths)
            np.testing.assert_array_equal(predictions.lengths, lengths)

    def test_pad(self):
        """Sequences are padded with zeros to the longest of them."""
        data = make_dataset(counts=(5, 0, 0))
        frames, lengths = evaluation.pad([data.sequence(row) for row in range(5)])
        assert frames.shape == (5, data.lengths.max(), 3)
        np.testing.assert_array_equal(lengths, data.lengths)
        for row in range(5):
            np.testing.assert_array_equal(
                frames[row, : lengths[row]], data.sequence(row)
            )
            assert not frames[row, lengths[row] :].any()
