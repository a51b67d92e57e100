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

    def test_balanced(self):
        """Balanced weights give the mean cost of copies that make classes equal: of
        four sequences, three of class 0, the last three times."""
        logits = np.float32([[2, 0], [1, 1], [0, 3], [-1, 1]])
        targets, ones = np.array([0, 0, 0, 1], np.int32), np.ones(4, np.int32)
        balanced = np.float32([4 / (2 * 3), 4 / (2 * 1)])
        mean = np.full(4, 1 / 4, np.float32)
        value = cost(logits, targets, ones, mean, class_weights=balanced)
        copies = [0, 1, 2, 3, 3, 3]
        expected = np.mean([entropy(logits[row], targets[row]) for row in copies])
        np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_balanced_steps(self):
        """Steps are weighted by their labels; those past a length have no part in it."""
        logits = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
        targets = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
        lengths, share = np.array([3, 1], np.int32), np.float32([0.5, 0.5])
        each = [2 * entropy(logits[0, 0], 0)]
        each += [3 * entropy(logits[0, step], 1) for step in (1, 2)]
        expected = (np.mean(each) + 3 * entropy(logits[1, 0], 1)) / 2
        for padding in (0, 50):
            logits[1, 1:] = padding
            value = cost(
                logits, targets, lengths, share, class_weights=np.float32([2, 3])
            )
            np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_smoothing(self):
        """Of a smoothed target each class has a share; with class weights, the
        whole counts by the true class."""
        logits, lengths = np.float32([[2, 0, -1]]), np.array([1], np.int32)
        target, share = np.array([1], np.int32), np.float32([1])
        shares = [0.1, 0.8, 0.1]  # 0.7, and 0.3 shared by three
        expected = sum(s * entropy(logits[0], c) for c, s in enumerate(shares))
        value = cost(logits, target, lengths, share, smoothing=0.3)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        triple = np.float32([1, 3, 1])
        weighted = cost(
            *(logits, target, lengths, share), class_weights=triple, smoothing=0.3
        )
        np.testing.assert_allclose(weighted, 3 * expected, rtol=1e-6)

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
