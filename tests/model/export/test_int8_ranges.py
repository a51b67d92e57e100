"""The ranges that 8 bits divide."""

from dataclasses import replace

import numpy as np
import pytest

from model.export import int8_ranges
from model.training import loop
from tests.support.networks import make_config, make_dataset


def test_frames():
    """Frames are clipped where few of the train part's numbers are beyond, at 4
    deviations or 1.25 times the largest number at least."""
    dataset = make_dataset("label", counts=(400, 0, 0))
    network = loop.build(dataset, make_config(network={"cell": "lstm"}))

    def measured(frames):
        changed = replace(dataset, frames=frames)
        normalised = (changed.frames - network.mean) * network.scale
        return np.abs(normalised), *int8_ranges.of_frames(network, changed)

    numbers, clip, clipped = measured(dataset.frames)
    assert min(4, 1.25 * numbers.max()) <= clip <= 5
    assert clipped == 0
    far = dataset.frames.copy()
    far[:500] *= 100
    numbers, clip, clipped = measured(far)
    assert clip > 50
    assert clipped == pytest.approx(100 * (numbers > clip).mean())
    assert clipped <= 0.01
    # Of two values, both are almost multiples of the unit that 8 bits count.
    numbers, clip, _ = measured(np.where(dataset.frames > 0, 1.0, -0.3))
    assert 1.25 * numbers.max() <= clip + 1e-6
    parts = numbers / (2 * clip / 255)
    assert np.abs(parts - np.round(parts)).mean() < 0.15


def test_weights():
    """Weights are clipped where that lessens the squares of all rounding errors."""
    weights = np.random.default_rng(0).normal(size=(1, 4, 400)).astype(np.float32)
    weights[0, 0, 0] = 8  # far larger than the others of its gate
    weights[0, 3] = 0

    def error(clipped):
        unit = np.abs(clipped).max(-1, keepdims=True) / 127
        unit[unit == 0] = 1
        return np.square(unit * np.round(clipped / unit) - weights).sum(-1)

    clipped = int8_ranges._clip(weights)
    assert (error(clipped) <= error(weights)).all()
    assert error(clipped)[0, 1] < error(weights)[0, 1]
    np.testing.assert_array_equal(clipped[0, 3], 0)
