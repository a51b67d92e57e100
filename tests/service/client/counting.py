"""The sequences of the counting engine, and the answers to them."""

import numpy as np

from tests.support.scheduler import expected, frames


def assert_counts(answer, length, first=7):
    """It is the answer after `length` steps of the sequence that starts with `first`."""
    assert answer.steps == length
    np.testing.assert_array_equal(answer.probabilities, expected(length, first)[-1])


def part(begin, end, first=7):
    return frames(end, first)[begin:]
