"""The temperature, and how far confidence is from accuracy."""

import numpy as np
import pytest

from model.evaluation import calibration


def make_logits(count=20000, classes=4, scale=1.5, seed=0):
    """Logits, and targets drawn from their very softmax: perfectly calibrated."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (count, classes))
    sums = calibration.softmax(logits).cumsum(1)
    targets = (random.uniform(size=(count, 1)) > sums).sum(1)
    return logits, np.minimum(targets, classes - 1)


class TestSoftmax:
    def test_by_hand(self):
        """Exponentials over their sum, along the last axis."""
        logits = np.random.default_rng(0).normal(size=(3, 5, 4))
        powers = np.exp(logits)
        want = powers / powers.sum(-1, keepdims=True)
        np.testing.assert_allclose(calibration.softmax(logits), want, rtol=1e-12)

    def test_huge(self):
        """Logits of any size give probabilities."""
        logits = np.float32([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]])
        want = [[1, 0, 0], [1 / 3] * 3]
        np.testing.assert_allclose(calibration.softmax(logits), want, rtol=1e-6)


class TestTemperature:
    @pytest.mark.parametrize(
        ("factor", "classes"), [(0.25, 10), (0.5, 2), (1.0, 4), (2.0, 2), (5.0, 10)]
    )
    def test_recovered(self, factor, classes):
        """Logits that were sharpened by a factor get it back as temperature."""
        logits, targets = make_logits(classes=classes)
        fitted = calibration.fit_temperature(logits * factor, targets)
        np.testing.assert_allclose(fitted, factor, rtol=0.05)

    def test_least_cost(self):
        """No temperature near it makes the targets more likely."""
        logits, targets = make_logits(count=3000)

        def cost(temperature):
            scores = calibration.softmax(3 * logits / temperature)
            return -np.log(scores[np.arange(len(targets)), targets]).mean()

        fitted = calibration.fit_temperature(3 * logits, targets)
        assert cost(fitted) < min(cost(1.0), cost(0.9 * fitted), cost(1.1 * fitted))

    def test_float32(self):
        """Logits as the network gives them are fitted as exactly."""
        logits, targets = make_logits(count=2000)
        single = calibration.fit_temperature(logits.astype(np.float32), targets)
        double = calibration.fit_temperature(logits, targets)
        np.testing.assert_allclose(single, double, rtol=1e-3)

    def test_likeliest(self):
        """The temperature is the likeliest where its logarithm is normal about 0
        beforehand: no other of a fine grid is likelier; with few mistakes at least 1."""
        for count in (1, 3, 20, 1000):
            for sharpness in (0.3, 1, 4):
                logits, targets = make_logits(count=count, scale=sharpness, seed=count)
                logs = np.linspace(-3, 3, 601)
                costs = []
                for log in logs:
                    scores = calibration.softmax(logits / np.exp(log))
                    right = scores[np.arange(count), targets]
                    costs.append(log**2 / 2 - np.log(right).sum())
                likeliest = logs[np.argmin(costs)]
                if (logits.argmax(1) != targets).sum() < calibration.FEW_MISTAKES:
                    likeliest = max(0, likeliest)
                fitted = calibration.fit_temperature(logits, targets)
                np.testing.assert_allclose(np.log(fitted), likeliest, atol=0.02)

    def test_few_mistakes(self):
        """Nine mistakes or fewer don't make the network more certain; ten do."""
        logits = np.tile([0, 2.0, 0], (1000, 1))
        for mistakes, temperature in ((0, 1), (9, 1), (10, 0.4)):
            targets = np.ones(1000, int)
            targets[:mistakes] = 0
            fitted = calibration.fit_temperature(logits, targets)
            np.testing.assert_allclose(fitted, temperature, atol=0.1)

    def test_bounded(self):
        """The temperature is finite and positive for any predictions."""
        for logits, targets in (
            (np.zeros((5, 3)), [0, 1, 2, 0, 1]),
            ([[9.0, 0], [9, 0], [9, 0]], [1, 1, 1]),
            ([[1e4, 0], [1e4, 0]], [0, 1]),
            ([[1e-6, 0], [0, 1e-6]], [0, 1]),
            ([[1.0], [2.0]], [0, 0]),
        ):
            fitted = calibration.fit_temperature(np.array(logits), np.array(targets))
            assert 1 / 20.1 < fitted < 20.1

    def test_same_classes(self):
        """A temperature changes confidence, never the class."""
        logits, targets = make_logits(count=500)
        fitted = calibration.fit_temperature(4 * logits, targets)
        scores = calibration.softmax(4 * logits / fitted)
        np.testing.assert_array_equal(scores.argmax(1), logits.argmax(1))
        assert fitted > 2


class TestExpectedError:
    def test_naive(self):
        """The error is that of a plain loop over answers and bins."""
        for seed in range(5):
            logits, targets = make_logits(count=300, seed=seed)
            scores = calibration.softmax(3 * logits)
            bins = [[] for _ in range(15)]
            for row, target in zip(scores, targets, strict=True):
                place = min(int(15 * max(row)), 14)
                bins[place].append((max(row), float(np.argmax(row) == target)))
            total = 0.0
            for entries in bins:
                if entries:
                    confidence, right = np.mean(entries, axis=0)
                    total += len(entries) / 300 * abs(confidence - right)
            fitted = calibration.expected_calibration_error(scores, targets)
            np.testing.assert_allclose(fitted, total, rtol=1e-9)

    def test_calibrated(self):
        """Targets drawn from the probabilities themselves leave little error."""
        logits, targets = make_logits(count=50000)
        scores = calibration.softmax(logits)
        assert calibration.expected_calibration_error(scores, targets) < 0.01

    def test_known_gap(self):
        """Confidence 0.9 where 6 of 10 are right is an error of 0.3."""
        scores = np.tile([0.9, 0.1], (1000, 1))
        targets = np.arange(1000) % 10 >= 6
        fitted = calibration.expected_calibration_error(scores, targets.astype(int))
        np.testing.assert_allclose(fitted, 0.3, rtol=1e-9)

    def test_temperature_mends(self):
        """Overconfident answers are calibrated by their temperature."""
        logits, targets = make_logits()
        fit, held_out = slice(0, 10000), slice(10000, None)
        fitted = calibration.fit_temperature(4 * logits[fit], targets[fit])
        before, after = (
            calibration.expected_calibration_error(
                calibration.softmax(4 * logits[held_out] / temperature),
                targets[held_out],
            )
            for temperature in (1, fitted)
        )
        assert before > 0.1
        assert after < 0.02


class TestReliability:
    def test_counts(self):
        """Bins lie apart, in order, and hold every answer once."""
        logits, targets = make_logits(count=500)
        bins = calibration.reliability_bins(calibration.softmax(logits), targets)
        assert sum(entry["count"] for entry in bins) == 500
        assert all(entry["count"] for entry in bins)
        for entry in bins:
            assert entry["from"] <= entry["confidence"] <= entry["to"]
        edges = [edge for entry in bins for edge in (entry["from"], entry["to"])]
        assert edges == sorted(edges)

    def test_certain(self):
        """A confidence of exactly 1 belongs to the last bin."""
        (entry,) = calibration.reliability_bins(
            np.eye(3, dtype=np.float32), np.arange(3)
        )
        assert (entry["to"], entry["count"], entry["accuracy"]) == (1, 3, 1)
