"""The cost and the errors of predictions, compared with NumPy."""

import numpy as np

from model.network.network import cost, count_errors


def entropy(logits, target):
    """The cross entropy of one prediction, by hand."""
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum()) - logits[target]


class TestCost:
    def test_classify(self):
        """The cost of sequences is their mean cross entropy, or a weighted sum."""
        logits = np.array([[2.0, 0, -1], [0, 0, 0], [1, 3, 3]], np.float32)
        targets, lengths = np.array([0, 2, 1], np.int32), np.array([9, 1, 4], np.int32)
        each = [entropy(x, y) for x, y in zip(logits, targets, strict=True)]
        for weights in ([1 / 3] * 3, [1, 0, 0], [0.5, 0.25, 0.25]):
            value = cost(logits, targets, lengths, np.float32(weights))
            np.testing.assert_allclose(value, np.dot(each, weights), rtol=1e-6)

    def test_label(self):
        """Each sequence is the mean over its own steps; then sequences are averaged,
        so that a short one counts as much as a long one."""
        logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        targets = np.array([[0, 1, 3], [2, 3, 3]], np.int32)
        short, long = [0], [0, 1, 2]
        means = [
            np.mean([entropy(logits[row, step], targets[row, step]) for step in steps])
            for row, steps in ((0, long), (1, short))
        ]
        share = np.float32([0.5, 0.5])
        value = cost(logits, targets, np.array([3, 1], np.int32), share)
        np.testing.assert_allclose(value, np.mean(means), rtol=1e-6)

    def test_huge_logits(self):
        """Logits that overflow an exponential have a finite cost."""
        logits = np.array([[1e4, -1e4]], np.float32)
        ones = np.array([1], np.int32)
        value = cost(logits, ones, ones, np.float32([1]))
        np.testing.assert_allclose(value, 2e4)


class TestErrors:
    def test_classify(self):
        """Wrong sequences are counted among the selected rows."""
        logits = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
        targets, lengths = np.array([0, 0, 1, 1], np.int32), np.ones(4, np.int32)
        for selected, expected_counts in (
            ([1, 1, 1, 1], (2, 4)),
            ([1, 0, 1, 0], (1, 2)),
        ):
            counts = count_errors(logits, targets, lengths, np.array(selected, bool))
            assert tuple(map(float, counts)) == expected_counts

    def test_label(self):
        """Wrong valid steps are counted; padding and other rows are not."""
        logits = np.zeros((2, 3, 2), np.float32)
        logits[:, :, 1] = 1  # class 1 everywhere
        targets = np.array([[1, 0, 0], [0, 1, 0]], np.int32)
        lengths = np.array([2, 3], np.int32)
        for selected, expected_counts in (
            ([1, 1], (3, 5)),
            ([1, 0], (1, 2)),
            ([0, 1], (2, 3)),
        ):
            counts = count_errors(logits, targets, lengths, np.array(selected, bool))
            assert tuple(map(float, counts)) == expected_counts
