"""The 95 % intervals: values by hand, coverage by simulation, and odd parts."""

import numpy as np
import pytest

from model.evaluation import calibration, intervals


def draw(random, sequences, steps, *, shared=0.0, temperature=1.0, classes=3):
    """Answers of a predictor that is perfectly calibrated at temperature 1.

    Args:
        shared: share of the noise that the steps of a sequence have in common.
    """
    shape = (sequences, steps, classes)
    targets = random.integers(classes, size=shape[:2])
    own, common = random.normal(size=shape), random.normal(size=(sequences, 1, classes))
    evidence = np.sqrt(1 - shared) * own + np.sqrt(shared) * common
    np.put_along_axis(
        evidence,
        targets[:, :, None],
        2 + np.take_along_axis(evidence, targets[:, :, None], 2),
        2,
    )
    scores = calibration.softmax(2 * evidence / temperature).reshape(-1, classes)
    return scores, targets.ravel(), np.repeat(np.arange(sequences), steps)


def truth(**options):
    """Error, macro F1 and ECE of all that could be drawn, in percent."""
    scores, targets, _ = draw(np.random.default_rng(9), 200_000, 1, **options)
    error = 100 * float((scores.argmax(1) != targets).mean())
    ece = 100 * calibration.expected_calibration_error(scores, targets)
    return error, 100 - error, ece  # macro F1: the classes are alike


class TestError:
    def test_wilson(self):
        """The score interval has its published values, and ends at 0 and 1."""
        low, high = intervals.wilson(15 / 148, 148)
        assert (low, high) == pytest.approx(
            (0.0624, 0.1605), abs=1e-4
        )  # Newcombe, 1998
        low, high = intervals.wilson(1 / 29, 29)
        assert (low, high) == pytest.approx((0.0061, 0.1718), abs=1e-4)
        assert intervals.wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
        assert intervals.wilson(1, 20) == pytest.approx((0.8389, 1), abs=1e-4)

    def test_single_answers(self):
        """Of one answer for each sequence it is Wilson's interval."""
        wrong = np.arange(40) < 9
        result = intervals.error_interval(wrong, np.arange(40))
        assert result == intervals.wilson(9 / 40, 40)

    def test_coverage(self):
        """95 % of the intervals hold the true error, whether steps go together or not."""
        random, draws, true = np.random.default_rng(0), 500, truth()[0] / 100
        for sequences, steps, shared in ((150, 1, 0), (40, 10, 0), (40, 10, 0.5)):
            hits = 0
            for _ in range(draws):
                scores, targets, groups = draw(random, sequences, steps, shared=shared)
                wrong = scores.argmax(1) != targets
                low, high = intervals.error_interval(wrong, groups)
                hits += low <= true <= high
            assert 0.92 <= hits / draws <= 0.98, (sequences, steps, shared)

    def test_alike(self):
        """Sequences that are right or wrong as a whole count as one answer each."""
        wrong = np.repeat(np.arange(40) < 12, 25)
        result = intervals.error_interval(wrong, np.repeat(np.arange(40), 25))
        wide = intervals.wilson(0.3, 40, 2.0227)  # Student's t, 39 degrees of freedom
        assert result == pytest.approx(wide, abs=1e-3)

    def test_no_mistakes(self):
        """Without a mistake a sequence counts as one answer: one could be all wrong."""
        wrong = np.zeros(200, bool)
        low, high = intervals.error_interval(wrong, np.repeat(np.arange(20), 10))
        assert low == pytest.approx(0, abs=1e-9)
        assert 0.16 < high < 0.19

    def test_one_sequence(self):
        """The steps of a single sequence say nothing about others."""
        wrong = np.arange(100) < 20
        assert intervals.error_interval(wrong, np.zeros(100, int)) == (0, 1)

    def test_student(self):
        """Student's t has its published values, also for few groups."""
        for freedom, value in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571)):
            assert intervals.student_95(freedom) == pytest.approx(value, abs=0.03)
        assert intervals.student_95(30) == pytest.approx(2.042, abs=0.001)


class TestEstimate:
    @pytest.mark.slow
    @pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
    def test_coverage(self, temperature):
        """95 % of the intervals or more hold the true value, of steps as well."""
        random, draws = np.random.default_rng(0), 100
        true = truth(temperature=temperature)
        for sequences, steps, shared in ((40, 1, 0), (150, 1, 0), (40, 10, 0.5)):
            options = {"shared": shared, "temperature": temperature}
            hits = np.zeros(3)
            for _ in range(draws):
                result, _ = intervals.estimate(
                    *draw(random, sequences, steps, **options)
                )
                ends = (result.error, result.macro_f1, result.calibration_error)
                # A perfectly calibrated one has 0.1 % of what `truth` drew.
                hits += [
                    a - 0.15 <= t <= b for (a, b), t in zip(ends, true, strict=True)
                ]
            assert (hits >= 0.9 * draws).all(), (sequences, steps, hits / draws)

    def test_eight_answers(self):
        """On eight answers the ECE of a perfectly calibrated predictor is some 26 %: that
        is said, and its interval begins at 0."""
        random, eces, chances, lows = np.random.default_rng(0), [], [], []
        for _ in range(200):
            scores, targets, groups = draw(random, 8, 1)
            scores = 0.55 + 0.3 * random.uniform(size=8)
            scores = np.stack([scores, 1 - scores], 1)
            targets = (random.uniform(size=8) > scores[:, 0]).astype(int)
            result, by_chance = intervals.estimate(scores, targets, groups)
            eces.append(100 * calibration.expected_calibration_error(scores, targets))
            chances.append(by_chance)
            lows.append(result.calibration_error[0])
        assert np.mean(eces) == pytest.approx(np.mean(chances), abs=2)
        assert 20 < np.mean(eces) < 35
        assert np.mean(np.array(lows) == 0) > 0.93

    def test_all_right(self):
        """Few answers without a mistake leave room for mistakes in all three."""
        scores = np.tile([0.99, 0.01], (10, 1))
        result, _ = intervals.estimate(scores, np.zeros(10, int), np.arange(10))
        assert result.error == pytest.approx([0, 27.75], abs=0.01)
        assert result.macro_f1 == pytest.approx([72.25, 100], abs=0.01)
        assert result.calibration_error == pytest.approx([0, 26.75], abs=0.01)

    def test_contains_estimate(self):
        """The interval holds the error and the macro F1, is in order, and within 0 to 100;
        so it is of one answer, of none right, and of a class that the part lacks."""
        random = np.random.default_rng(1)
        for count in (1, 2, 3, 20):
            for right in (0.0, 0.5, 1.0):
                scores = random.dirichlet(np.ones(4), count)
                targets = scores.argmax(1)
                wrong = random.uniform(size=count) >= right
                targets = np.where(wrong, (targets + 1) % 3, targets)
                result, by_chance = intervals.estimate(
                    scores, targets, np.arange(count)
                )
                error = 100 * float((scores.argmax(1) != targets).mean())
                assert result.error[0] - 1e-9 <= error <= result.error[1] + 1e-9
                for low, high in (
                    result.error,
                    result.macro_f1,
                    result.calibration_error,
                ):
                    assert 0 <= low <= high <= 100
                assert 0 <= by_chance <= 100

    def test_one_group(self):
        """Of a single group all three are 0 to 100 %."""
        scores, targets, _ = draw(np.random.default_rng(0), 90, 1)
        result, _ = intervals.estimate(scores, targets, np.full(90, 3))
        for interval in (result.error, result.macro_f1, result.calibration_error):
            assert interval == [0, 100]

    def test_repeatable(self):
        """The same answers give the same intervals, whatever the groups' numbers are."""
        scores, targets, groups = draw(np.random.default_rng(0), 30, 4)
        first = intervals.estimate(scores, targets, groups)
        assert first == intervals.estimate(scores, targets, 7 + 3 * groups)

    def test_many(self):
        """More sequences than blocks, and more classes than are counted at once, have the
        intervals of a normal variable."""
        random = np.random.default_rng(0)
        for count, classes in ((20_000, 5), (3_000, 1_100)):
            predicted = random.integers(classes, size=count)
            wrong = random.uniform(size=count) < 0.2
            targets = np.where(wrong, (predicted + 1) % classes, predicted)
            scores = np.full((count, classes), 0.3 / (classes - 1), np.float32)
            scores[np.arange(count), predicted] = 0.7
            result, _ = intervals.estimate(scores, targets, np.arange(count))
            margin = 196 * np.sqrt(0.16 / count)
            ece = 100 * (1 - wrong.mean() - 0.7)
            expected = [ece - margin, ece + margin]
            assert result.calibration_error == pytest.approx(expected, abs=0.3 * margin)
            low, high = result.macro_f1
            assert high - low == pytest.approx(2 * margin, rel=0.35)
