"""The difference of two errors on the same answers, and the verdict on baselines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation import comparison
from model.evaluation.comparison import Baseline, Difference, difference

answers = st.lists(st.booleans(), min_size=1, max_size=200)


def classify(wrong, other):
    """The difference where each sequence has one answer."""
    return difference(np.array(wrong), np.array(other), np.arange(len(wrong)))


class TestDifference:
    @given(answers)
    def test_identical(self, wrong):
        """Identical answers are no worse: the interval is around zero."""
        result = classify(wrong, wrong)
        assert not result.worse
        assert result.value == 0
        assert result.low == pytest.approx(-result.high)
        assert 0 < result.high < 100

    @given(answers, st.randoms(use_true_random=False))
    def test_swapped(self, wrong, random):
        """The other way round it is the negative, so not both can be worse."""
        other = random.sample(wrong, len(wrong))
        there, back = classify(wrong, other), classify(other, wrong)
        assert there.low == pytest.approx(-back.high)
        assert not (there.worse and back.worse)
        assert there.low - 1e-9 <= there.value <= there.high + 1e-9 or len(wrong) < 10

    @given(st.integers(8, 300), st.integers(0, 300))
    def test_all_wrong(self, right, wrong):
        """A network that has everything wrong which the other has right is worse."""
        present = [False] * right + [True] * wrong
        if right > wrong:
            assert classify(present, [True] * len(present)).worse
        assert not classify([True] * len(present), present).worse

    def test_agresti_min(self):
        """For single answers it is the published interval, computed cell by cell."""
        for both, new_only, present_only, neither in ((3, 7, 1, 89), (40, 20, 12, 428)):
            cells = (both, new_only, present_only, neither)
            present = np.repeat([True, False, True, False], cells)
            new = np.repeat([True, True, False, False], cells)
            result = classify(present, new)
            b, c, total = new_only + 0.5, present_only + 0.5, sum(cells) + 2
            middle = (b - c) / total
            margin = 1.959964 * np.sqrt(b + c - (b - c) ** 2 / total) / total
            expected = [100 * (middle - margin), 100 * (middle + margin)]
            assert [result.low, result.high] == pytest.approx(expected)
            assert result.value == pytest.approx(100 * (new.mean() - present.mean()))

    def test_chance(self):
        """Of networks of the same error about one in forty is called worse."""
        random, worse = np.random.default_rng(0), 0
        for _ in range(2_000):
            present, new = random.uniform(size=(2, 150)) < 0.1
            worse += classify(present, new).worse
        assert 20 <= worse <= 80

    def test_steps_of_a_sequence(self):
        """So it is where the steps of a sequence are right or wrong together; each step
        for itself would be called worse far more often."""
        random, counts = np.random.default_rng(0), [0, 0]
        sequences = np.repeat(np.arange(40), 10)
        for _ in range(1_000):
            present, new = np.repeat(random.uniform(size=(2, 40)) < 0.2, 10, axis=1)
            counts[0] += difference(present, new, sequences).worse
            counts[1] += classify(present, new).worse
        assert 5 <= counts[0] <= 60
        assert counts[1] > 200

    def test_one_group(self):
        """Several answers of a single group say nothing about others, however many."""
        present, new = np.arange(900) < 8, np.arange(900) < 1
        result = difference(present, new, np.full(900, 7))
        assert (result.better, result.worse) == (False, False)
        assert (result.low, result.high) == (-100, 100)
        assert result.value == pytest.approx(-7 / 9)

    def test_few_groups(self):
        """Of predictors that are as good over all groups, though each is better on some,
        at most about one in twenty is called better or worse."""
        random = np.random.default_rng(0)
        for count in (2, 3, 4, 6, 10):
            groups, called = np.repeat(np.arange(count), 100), 0
            for _ in range(500):
                gap = np.repeat(random.normal(0, 0.05, count), 100)
                present, new = random.uniform(size=(2, 100 * count))
                result = difference(present < 0.3 - gap, new < 0.3 + gap, groups)
                called += result.better or result.worse
            assert called <= 35, count


def test_verdict():
    """The sentence names the baselines that the network beats, or those that it doesn't,
    with the interval."""

    def baseline(low, high):
        return Baseline(
            99, 400, 50.0, [40, 60], Difference((low + high) / 2, low, high)
        )

    good, bad = baseline(-9, -1), baseline(-3, 2)
    text = comparison.verdict({"logistic_regression": good, "majority": good})
    assert (
        text
        == "the network beats logistic regression and the majority class beyond chance"
    )
    text = comparison.verdict({"logistic_regression": bad, "majority": good})
    assert text == (
        "the network does not beat logistic regression beyond chance (-0.50 points, 95 %"
        " interval -3.00 to +2.00)"
    )
    text = comparison.verdict({"logistic_regression": bad, "majority": bad})
    assert "beat logistic regression or the majority class beyond chance (" in text
    worse = baseline(2, 4)
    text = comparison.verdict({"logistic_regression": worse, "majority": bad})
    assert text.startswith(
        "the network is worse than logistic regression beyond chance (+3"
    )
    assert "), and does not beat the majority class beyond chance (-0.50" in text
