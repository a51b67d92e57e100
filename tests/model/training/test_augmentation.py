"""Random changes of images and sequences: how much, by which seed, of which data."""

import numpy as np
import pytest
import tensorflow as tf

from model.config import AugmentationConfig, ConfigError
from model.datasets.dataset import Dataset, default_features
from model.training import augmentation
from tests.support.networks import make_config

IMAGE = AugmentationConfig(image=(8, 6))


def blob(count=4):
    """Images with one bright square in the middle, rows as steps: [B, 8, 6]."""
    frames = np.zeros((count, 8, 6), np.float32)
    frames[:, 3:5, 2:4] = 1
    return frames


def change(frames, seed=(1, 2), scale=None, **options):
    config = IMAGE.model_copy(update=options)
    seed = tf.constant(seed, tf.int32)
    return np.asarray(augmentation.apply(frames, config, scale=scale, seed=seed))


OPTIONS = [
    {"shift": 2.0},
    {"rotate": 45.0},
    {"zoom": 0.5},
    {"shear": 0.5},
    {"erase": 0.3},
    {"noise": 0.1},
    {"offset": 0.1},
]


def make_data(lengths, features):
    return Dataset(
        name="made",
        task="classify",
        frames=np.zeros((sum(lengths), features)),
        lengths=lengths,
        targets=np.zeros(len(lengths), int),
        classes=("a",),
        features=default_features(features),
        split=np.zeros(len(lengths), int),
    )


def test_identity():
    """With every option at 0 nothing changes, to the bit."""
    frames = np.random.default_rng(0).normal(size=(3, 8, 6)).astype(np.float32)
    np.testing.assert_array_equal(change(frames), frames)


def test_seeded():
    """Each option changes frames, by its seed alone, and keeps their shape."""
    for options in OPTIONS:
        frames = blob()
        first = change(frames, **options)
        assert first.shape == frames.shape
        assert first.dtype == np.float32
        assert np.abs(first - frames).max() > 1e-3
        np.testing.assert_array_equal(change(frames, **options), first)
        assert np.abs(change(frames, (1, 3), **options) - first).max() > 1e-3


def test_each_its_own():
    """Two images of a batch are changed by different amounts."""
    for options in OPTIONS:
        image = np.random.default_rng(0).uniform(0.5, 1, (1, 8, 6)).astype(np.float32)
        changed = change(np.repeat(image, 2, 0), **options)
        assert np.abs(changed[0] - changed[1]).max() > 1e-3


def test_whole_image_a_frame():
    """An image a step is moved as the same image in rows would be."""
    rows = change(blob(6), shift=2.0, rotate=20.0)
    frames = change(blob(6).reshape(2, 3, 48), shift=2.0, rotate=20.0)
    np.testing.assert_array_equal(frames.reshape(6, 8, 6), rows)


def test_shift():
    """Shifted images are moved as a whole, by at most the pixels allowed."""
    y, x = np.mgrid[:8, :6]
    moved = change(blob(200), shift=2.0)
    np.testing.assert_allclose(moved.sum((1, 2)), 4, atol=0.8)
    way_y = (moved * y).sum((1, 2)) / moved.sum((1, 2)) - 3.5
    way_x = (moved * x).sum((1, 2)) / moved.sum((1, 2)) - 2.5
    for way in (way_x, way_y):
        assert np.abs(way).max() <= 2.01
        assert way.min() < -1
        assert way.max() > 1
        assert abs(way.mean()) < 0.3


def test_rotate():
    """A bar turns about the middle: its centre stays, its direction changes."""
    frames = np.zeros((100, 9, 9), np.float32)
    frames[:, 4, 1:8] = 1
    config = AugmentationConfig(image=(9, 9), rotate=90)
    turned = np.asarray(augmentation.apply(frames, config, seed=[3, 4]))
    y, x = np.mgrid[:9, :9] - 4
    weight = turned.sum((1, 2))
    np.testing.assert_allclose((turned * x).sum((1, 2)) / weight, 0, atol=0.05)
    np.testing.assert_allclose((turned * y).sum((1, 2)) / weight, 0, atol=0.05)
    height = (turned * y**2).sum((1, 2)) / weight
    width = (turned * x**2).sum((1, 2)) / weight
    np.testing.assert_allclose(height + width, 4, atol=0.6)
    assert (height > 3).any()
    assert (width > 3).any()


def test_erase():
    """About the part that is asked for becomes zero; the rest stays."""
    frames = np.ones((10, 8, 6), np.float32)
    erased = change(frames, erase=0.25)
    assert set(np.unique(erased)) == {0.0, 1.0}
    assert abs((erased == 0).mean() - 0.25) < 0.06


def test_noise():
    """Noise is measured in each feature's own deviation."""
    frames = np.zeros((400, 8, 6), np.float32)
    deviation = np.float32([1, 2, 4, 8, 0.5, 0.1])
    noisy = change(frames, noise=0.5, scale=1 / deviation)
    np.testing.assert_allclose(noisy.std((0, 1)), 0.5 * deviation, rtol=0.1, atol=0)


def test_offset():
    """An offset moves all steps of a sequence alike, by each feature's deviation."""
    frames = np.random.default_rng(0).normal(size=(3000, 3, 2)).astype(np.float32)
    deviation = np.float32([1, 8])
    moved = change(frames, offset=0.5, scale=1 / deviation) - frames
    np.testing.assert_allclose(moved, moved[:, :1].repeat(3, 1), atol=1e-5)
    np.testing.assert_allclose(moved.std((0, 1)), 0.5 * deviation, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "lengths", "features"),
    [
        pytest.param({"image": (4, 3)}, [4, 5], 3, id="a-sequence-too-long"),
        pytest.param({"image": (3, 4)}, [4, 4], 3, id="turned"),
        pytest.param({"image": (2, 2)}, [4, 4], 3, id="no-such-frame"),
        pytest.param({"shift": 1.0}, [4, 4], 3, id="none-for-shift"),
        pytest.param({"rotate": 1.0}, [4, 4], 3, id="none-for-rotate"),
        pytest.param({"zoom": 0.1}, [4, 4], 3, id="none-for-zoom"),
        pytest.param({"shear": 0.1}, [4, 4], 3, id="none-for-shear"),
        pytest.param({"image": (-2, -3), "shift": 1.0}, [4], 6, id="negative"),
    ],
)
def test_refused(options, lengths, features):
    """An image's size that the data hasn't, or none, is refused by name."""
    data = make_data(lengths, features)
    with pytest.raises(ConfigError, match=r"augmentation\.image"):
        augmentation.check(make_config(augmentation=options).augmentation, data)


def test_accepted():
    """Sizes that fit, and changes that need none, are taken."""
    for options, lengths, features in (
        ({"image": (4, 3), "shift": 1.0}, [4, 4], 3),
        ({"image": (2, 3), "shift": 1.0}, [1, 5], 6),
        ({"noise": 0.5, "erase": 0.1}, [1, 5], 3),
    ):
        data = make_data(lengths, features)
        augmentation.check(make_config(augmentation=options).augmentation, data)
