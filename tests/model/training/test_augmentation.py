"""Random changes of images and sequences: how much, by which seed, of which data."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

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


def change(frames, seed=(1, 2), statistics=(0.0, 1.0), **options):
    """The changed frames of whole sequences."""
    lengths = np.full(len(frames), frames.shape[1], np.int32)
    targets = np.zeros(len(frames), np.int32)
    options = IMAGE.model_dump() | options
    return augment(frames, lengths, targets, seed, statistics, **options)[0]


def augment(frames, lengths, targets, seed=(1, 2), statistics=(0.0, 1.0), **options):
    """The changed frames, lengths and targets, as arrays."""
    config, seed = AugmentationConfig(**options), tf.constant(seed, tf.int32)
    mean, deviation = statistics
    batch = map(tf.constant, (frames, lengths, targets))
    changed = augmentation.apply(
        *batch, config, mean=mean, deviation=deviation, seed=seed
    )
    return tuple(map(np.asarray, changed))


def clock(lengths, padding=np.nan):
    """Frames and labels that count the steps, so that the changed ones tell which
    steps they are made of."""
    lengths = np.asarray(lengths, np.int32)
    steps = np.arange(lengths.max())
    frames = np.where(steps < lengths[:, None], steps, padding)
    labels = np.where(steps < lengths[:, None], steps, -1)
    return frames[:, :, None].astype(np.float32), lengths, labels.astype(np.int32)


def read_clock(lengths, seed=(1, 2), **options):
    """The places and labels of each sequence's new steps."""
    frames, lengths, labels = augment(*clock(lengths), seed, **options)
    rows = zip(frames[:, :, 0], labels, lengths, strict=True)
    return [(places[:length], names[:length]) for places, names, length in rows]


OPTIONS = [
    {"shift": 2.0},
    {"rotate": 45.0},
    {"zoom": 0.5},
    {"shear": 0.5},
    {"time_warp": 0.5},
    {"window": 0.5},
    {"magnitude": 0.5},
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
    turned = change(frames, (3, 4), image=(9, 9), rotate=90)
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
    """About the part that is asked for becomes the feature's mean; the rest stays."""
    frames = np.full((10, 8, 6), -1, np.float32)
    mean = np.arange(6, dtype=np.float32)
    erased = change(frames, statistics=(mean, 1.0), erase=0.25)
    gone = erased != -1
    assert abs(gone.mean() - 0.25) < 0.06
    np.testing.assert_array_equal(erased[gone], np.broadcast_to(mean, gone.shape)[gone])


def test_noise():
    """Noise is measured in each feature's own deviation."""
    frames = np.zeros((400, 8, 6), np.float32)
    deviation = np.float32([1, 2, 4, 8, 0.5, 0.1])
    noisy = change(frames, statistics=(0.0, deviation), noise=0.5)
    np.testing.assert_allclose(noisy.std((0, 1)), 0.5 * deviation, rtol=0.1, atol=0)


def test_offset():
    """An offset moves all steps of a sequence alike, by each feature's deviation."""
    frames = np.random.default_rng(0).normal(size=(3000, 3, 6)).astype(np.float32)
    deviation = np.float32([1, 8, 1, 1, 1, 1])
    moved = change(frames, statistics=(0.0, deviation), offset=0.5) - frames
    np.testing.assert_allclose(moved, moved[:, :1].repeat(3, 1), atol=1e-5)
    np.testing.assert_allclose(moved.std((0, 1)), 0.5 * deviation, rtol=0.1)


def test_magnitude():
    """A feature of a sequence is stretched about the feature's mean by one factor,
    whose logarithm is normal with mean 0."""
    frames = np.random.default_rng(0).normal(size=(3000, 3, 2)).astype(np.float32)
    mean = np.float32([100, -5])
    moved = change(mean + frames, statistics=(mean, 1.0), magnitude=0.3) - mean
    factors = (moved * frames).sum(1) / np.square(frames).sum(1)  # [B, F]
    np.testing.assert_allclose(moved, factors[:, None] * frames, atol=1e-3)
    logs = np.log(factors)
    np.testing.assert_allclose(logs.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(logs.std(0), 0.3, rtol=0.1)
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.1


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=8)
SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
FRACTIONS = st.sampled_from([0.1, 0.25, 0.5, 0.9])


@given(LENGTHS, SEEDS, FRACTIONS)
def test_time_warp(lengths, seed, fraction):
    """Time runs forward from the first step to the last, never faster or slower than
    the fraction allows, and never into the padding, which is NaN."""
    warped = read_clock(lengths, seed, time_warp=fraction)
    for length, (places, labels) in zip(lengths, warped, strict=True):
        assert len(places) == length
        np.testing.assert_allclose(places[[0, -1]], [0, length - 1], atol=1e-4)
        speed = np.diff(places)
        assert (np.abs(speed - 1) <= fraction + 1e-4).all()
        assert (np.abs(labels - places) <= 0.5 + 1e-4).all()


@given(LENGTHS, SEEDS, FRACTIONS)
def test_window(lengths, seed, fraction):
    """A window is a piece of the sequence, with its labels, and not too short."""
    cut = read_clock(lengths, seed, window=fraction)
    for length, (places, labels) in zip(lengths, cut, strict=True):
        assert (1 - fraction) * length - 1e-4 <= len(places) <= length
        assert len(places) >= 1
        first = places[0]
        np.testing.assert_array_equal(places, first + np.arange(len(places)))
        np.testing.assert_array_equal(labels, places)
        assert first >= 0
        assert places[-1] < length


@given(LENGTHS, SEEDS)
def test_warped_window(lengths, seed):
    """Together, time changes within the window, and all else happens to its frames."""
    options = {"window": 0.5, "time_warp": 0.5}
    both = read_clock(lengths, seed, **options)
    windows = read_clock(lengths, seed, window=0.5)
    for (places, _), (window, _) in zip(both, windows, strict=True):
        np.testing.assert_allclose(places[[0, -1]], window[[0, -1]], atol=1e-4)
    options |= {"magnitude": 0.2, "erase": 0.1, "noise": 0.1, "offset": 0.1}
    everything = read_clock(lengths, seed, **options)
    for (places, labels), (values, names) in zip(both, everything, strict=True):
        assert np.isfinite(values).all()
        assert values.shape == places.shape
        np.testing.assert_array_equal(names, labels)


def test_time_is_unbiased():
    """On average over many draws each step stays in its place, and a window's middle is
    the sequence's; windows have all the lengths that are allowed about equally often."""
    lengths = [21] * 4000
    warped = read_clock(lengths, time_warp=0.5)
    places = np.stack([places for places, _ in warped])
    np.testing.assert_allclose(places.mean(0), np.arange(21), atol=0.1)
    assert places.std(0)[5:16].min() > 0.5
    windows = [places for places, _ in read_clock(lengths, window=0.2)]
    middles = np.array([places.mean() for places in windows])
    assert abs(middles.mean() - 10) < 0.1
    counts = np.bincount([len(places) for places in windows])
    assert np.flatnonzero(counts).tolist() == [17, 18, 19, 20, 21]
    np.testing.assert_allclose(counts[17:] / 4000, 0.2, atol=0.03)


def test_interpolated():
    """Between two steps a warped frame is on the line from one to the other."""
    random = np.random.default_rng(0)
    _, lengths, _ = clock([30, 7])
    frames = random.normal(size=(2, 30, 3)).astype(np.float32)
    targets = np.zeros(2, np.int32)
    warped, _, same = augment(frames, lengths, targets, time_warp=0.6)
    np.testing.assert_array_equal(same, targets)
    for row, (places, _) in enumerate(read_clock([30, 7], time_warp=0.6)):
        for feature in range(3):
            line = np.interp(places, np.arange(30), frames[row, :, feature])
            ours = warped[row, : len(places), feature]
            np.testing.assert_allclose(ours, line, atol=1e-4)


def test_time_of_image_rows():
    """The rows of an image are moved as an image before some of them are cut off."""
    frames = np.random.default_rng(0).uniform(size=(3, 8, 6)).astype(np.float32)
    _, lengths, _ = clock([8] * 3)
    image = {"image": (8, 6), "shift": 2.0, "rotate": 20.0}
    moved, cut, _ = augment(frames, lengths, lengths, **image, window=0.4)
    whole = change(frames, **image)
    for row, (places, _) in enumerate(read_clock([8] * 3, window=0.4)):
        rows = whole[row, places.astype(int)]
        np.testing.assert_array_equal(moved[row, : cut[row]], rows)


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
        ({"image": (4, 3), "time_warp": 0.5, "window": 0.5}, [4, 4], 3),
    ):
        data = make_data(lengths, features)
        augmentation.check(make_config(augmentation=options).augmentation, data)
