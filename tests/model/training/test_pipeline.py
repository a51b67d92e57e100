"""Batches, statistics and augmentation of the training data."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

from model.config import AugmentationConfig, ConfigError
from model.datasets.dataset import TASKS, Dataset, default_features
from model.training import augmentation, loop, pipeline
from tests.support.networks import make_config, make_dataset, make_network

SEED = (5, 1)


@pytest.fixture(scope="module", params=TASKS)
def data(request):
    return make_dataset(request.param, counts=(41, 0, 0))


def read(batches, seed=SEED):
    """An epoch's batches as arrays."""
    return [tuple(map(np.asarray, batch)) for batch in batches.epoch(seed)]


def assert_same(left, right):
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def order(epoch):
    return np.concatenate([rows for rows, *_ in epoch]).tolist()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
class TestBatches:
    def test_each_sequence_once(self, data, static):
        """A pass holds every sequence once, whole and with its own target."""
        for size in (
            1,
            7,
            41,
            100,
        ):
            batches = pipeline.Batches(data, size, static=static)
            for seed in (SEED, None):
                epoch = read(batches, seed)
                assert len(epoch) == len(batches)
                assert sorted(order(epoch)) == list(range(len(data)))
                for rows, frames, lengths, targets in epoch:
                    assert 1 <= len(rows) <= size
                    for row, x, length, y in zip(
                        rows, frames, lengths, targets, strict=True
                    ):
                        np.testing.assert_array_equal(x[:length], data.sequence(row))
                        y = y if data.task == "classify" else y[:length]
                        np.testing.assert_array_equal(y, data.target(row))

    def test_padding_is_zero(self, data, static):
        """Past a sequence there are zeros, and class 0."""
        for _, frames, lengths, targets in read(
            pipeline.Batches(data, 7, static=static)
        ):
            padding = np.arange(frames.shape[1]) >= lengths[:, None]
            assert not frames[padding].any()
            if data.task == "label":
                assert not targets[padding].any()

    def test_types(self, data, static):
        """Arrays have the types that the compiled update takes."""
        for rows, frames, lengths, targets in read(
            pipeline.Batches(data, 7, static=static)
        ):
            assert (rows.dtype, frames.dtype) == (np.int64, np.float32)
            assert lengths.dtype == targets.dtype == np.int32

    def test_seed(self, data, static):
        """The same seed gives the same batches; another epoch or seed, other ones."""
        batches = pipeline.Batches(data, 7, static=static)
        first = read(batches)
        assert_same(read(batches), first)
        for other in ((5, 2), (6, 1)):
            assert order(read(batches, other)) != order(first)


@pytest.mark.parametrize("size", [1, 7, 41, 100])
def test_as_cut(data, size):
    """Batches come one by one as the order was cut into them, the shorter one too."""
    for seed in (
        SEED,
        None,
    ):
        batches = pipeline.Batches(data, size)
        cut = tf.ragged.constant(batches._order(seed), tf.int64, ragged_rank=1)
        assert [rows.tolist() for rows, *_ in read(batches, seed)] == cut.to_list()


def test_nothing(data):
    """Of no sequences there are no batches."""
    for seed in (
        SEED,
        None,
    ):
        assert read(pipeline.Batches(data.part("test"), 7), seed) == []


def test_pads_to_the_longest(data):
    """A batch is as long as its longest sequence, no step more."""
    for _, frames, lengths, _ in read(pipeline.Batches(data, 7)):
        assert frames.shape[1] == lengths.max()


def test_like_lengths_share_a_batch(data):
    """Lengths of different batches don't interleave, so little is padded."""
    epoch = read(pipeline.Batches(data, 7))
    spans = sorted((lengths.min(), lengths.max()) for _, _, lengths, _ in epoch)
    for (_, longest), (shortest, _) in pairwise(spans):
        assert longest <= shortest


def test_batches_are_shuffled():
    """Batches don't come from short to long, and companions change."""
    data = make_dataset(counts=(200, 0, 0))
    epochs = [read(pipeline.Batches(data, 10), (0, epoch)) for epoch in range(2)]
    longest = [lengths.max() for _, _, lengths, _ in epochs[0]]
    assert longest != sorted(longest)
    companions = [{frozenset(rows.tolist()) for rows, *_ in e} for e in epochs]
    assert companions[0] != companions[1]


def test_few_static_lengths():
    """Static unrolling meets at most 8 lengths, however many the data has."""
    data = make_dataset(counts=(300, 0, 0))
    lengths = np.arange(1, 301)
    data = replace(
        data,
        lengths=lengths,
        frames=np.zeros((lengths.sum(), 3)),
        targets=np.zeros(300, int),
    )
    batches = pipeline.Batches(data, 4, static=True)
    epochs = [read(batches, seed) for seed in (None, (0, 1), (0, 2))]
    steps = [{frames.shape[1] for _, frames, _, _ in epoch} for epoch in epochs]
    assert len(steps[0] | steps[1] | steps[2]) <= pipeline.BUCKETS
    for _, frames, lengths, _ in epochs[0]:
        assert frames.shape[1] >= lengths.max()
    assert max(steps[0]) == 300


class TestStatistics:
    def data(self, frames):
        frames = np.asarray(frames, np.float32)
        return Dataset(
            name="made",
            task="classify",
            frames=frames,
            lengths=[len(frames)],
            targets=[0],
            classes=("a",),
            features=default_features(frames.shape[1]),
            split=[0],
        )

    def normalised(self, frames, normalise):
        data = self.data(frames)
        mean, scale = pipeline.normalization(data, normalise)
        assert mean.dtype == scale.dtype == np.float32
        return (data.frames - mean) * scale

    def test_features(self):
        """Each feature comes to mean 0 and deviation 1."""
        frames = np.random.default_rng(0).normal([3, -50, 0], [1, 20, 0.5], (500, 3))
        x = self.normalised(frames, "features")
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(x.std(0), 1, atol=1e-4)

    def test_whole(self):
        """All features get one mean and one scale; all values, mean 0, deviation 1."""
        frames = np.random.default_rng(0).normal([3, -5, 0], [1, 2, 0.5], (500, 3))
        mean, scale = pipeline.normalization(self.data(frames), "whole")
        assert len(set(mean.tolist())) == len(set(scale.tolist())) == 1
        x = self.normalised(frames, "whole")
        np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-4)

    def test_none(self):
        """Frames stay as they are."""
        frames = np.random.default_rng(0).normal(7, 3, (50, 3)).astype(np.float32)
        np.testing.assert_array_equal(self.normalised(frames, "none"), frames)

    @pytest.mark.parametrize("normalise", ["features", "whole", "none"])
    @pytest.mark.parametrize(
        "frames",
        [
            pytest.param(np.full((9, 2), 3.0), id="all-constant"),
            pytest.param(np.zeros((9, 2)), id="all-zero"),
            pytest.param(np.float32([[1, 2]]), id="one-step"),
            pytest.param(np.c_[np.full(9, 1e6), np.arange(9)], id="one-constant"),
            pytest.param(np.full((9, 2), 1e30) * [1, -1], id="huge"),
        ],
    )
    def test_finite(self, frames, normalise):
        """Features that don't vary stay finite."""
        _, scale = pipeline.normalization(self.data(frames), normalise)
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
        assert np.isfinite(self.normalised(frames, normalise)).all()

    def test_mostly_constant(self):
        """A feature that rarely varies in training isn't blown up where it does."""
        frames = np.c_[np.arange(5000) % 7, np.arange(5000) == 9].astype(np.float32)
        x = self.normalised(frames, "features")
        assert np.abs(x).max() < 51

    def test_mixed_units(self):
        """Features in very different units end up alike."""
        random = np.random.default_rng(0)
        frames = np.c_[random.normal(1e5, 5e3, 500), random.normal(0, 0.5, 500)]
        x = self.normalised(frames.astype(np.float32), "features")
        np.testing.assert_allclose(x.std(0), 1, rtol=1e-3)

    def test_only_training_part(self):
        """Validation and test frames have no say in the statistics."""
        data = make_dataset()
        loud = data.frames.copy()
        loud[data.offsets[24] :] += 1000
        config = make_config()
        quiet, loud = (
            loop.build(data_, config) for data_ in (data, replace(data, frames=loud))
        )
        np.testing.assert_array_equal(quiet.mean, loud.mean)
        np.testing.assert_array_equal(quiet.scale, loud.scale)
        train = data.part("train").frames
        np.testing.assert_allclose(quiet.mean, train.mean(0), rtol=1e-5)
        np.testing.assert_allclose(quiet.scale, 1 / train.std(0), rtol=1e-5)


def test_constant_feature_in_network():
    """A network of data with a constant feature has finite answers."""
    data = make_dataset()
    frames = data.frames.copy()
    frames[:, 1] = 7
    network = loop.build(replace(data, frames=frames), make_config())
    logits = network(frames[None, :5], np.array([5], np.int32))
    assert np.isfinite(logits).all()


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


class TestAugmentation:
    def test_identity(self):
        """With every option at 0 nothing changes, to the bit."""
        frames = np.random.default_rng(0).normal(size=(3, 8, 6)).astype(np.float32)
        np.testing.assert_array_equal(change(frames), frames)

    def test_seeded(self):
        """Each option changes frames, by its seed alone, and keeps their shape."""
        for options in OPTIONS:
            frames = blob()
            first = change(frames, **options)
            assert first.shape == frames.shape
            assert first.dtype == np.float32
            assert np.abs(first - frames).max() > 1e-3
            np.testing.assert_array_equal(change(frames, **options), first)
            assert np.abs(change(frames, (1, 3), **options) - first).max() > 1e-3

    def test_each_its_own(self):
        """Two images of a batch are changed by different amounts."""
        for options in OPTIONS:
            image = (
                np.random.default_rng(0).uniform(0.5, 1, (1, 8, 6)).astype(np.float32)
            )
            changed = change(np.repeat(image, 2, 0), **options)
            assert np.abs(changed[0] - changed[1]).max() > 1e-3

    def test_whole_image_a_frame(self):
        """An image a step is moved as the same image in rows would be."""
        rows = change(blob(6), shift=2.0, rotate=20.0)
        frames = change(blob(6).reshape(2, 3, 48), shift=2.0, rotate=20.0)
        np.testing.assert_array_equal(frames.reshape(6, 8, 6), rows)

    def test_shift(self):
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

    def test_rotate(self):
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

    def test_erase(self):
        """About the part that is asked for becomes zero; the rest stays."""
        frames = np.ones((10, 8, 6), np.float32)
        erased = change(frames, erase=0.25)
        assert set(np.unique(erased)) == {0.0, 1.0}
        assert abs((erased == 0).mean() - 0.25) < 0.06

    def test_noise(self):
        """Noise is measured in each feature's own deviation."""
        frames = np.zeros((400, 8, 6), np.float32)
        deviation = np.float32([1, 2, 4, 8, 0.5, 0.1])
        noisy = change(frames, noise=0.5, scale=1 / deviation)
        np.testing.assert_allclose(noisy.std((0, 1)), 0.5 * deviation, rtol=0.1, atol=0)

    def test_offset(self):
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
    def test_refused(self, options, lengths, features):
        """An image's size that the data hasn't, or none, is refused by name."""
        data = self.data(lengths, features)
        with pytest.raises(ConfigError, match=r"augmentation\.image"):
            augmentation.check(make_config(augmentation=options).augmentation, data)

    def test_accepted(self):
        """Sizes that fit, and changes that need none, are taken."""
        for options, lengths, features in (
            ({"image": (4, 3), "shift": 1.0}, [4, 4], 3),
            ({"image": (2, 3), "shift": 1.0}, [1, 5], 6),
            ({"noise": 0.5, "erase": 0.1}, [1, 5], 3),
        ):
            data = self.data(lengths, features)
            augmentation.check(make_config(augmentation=options).augmentation, data)

    def data(self, lengths, features):
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

    @pytest.mark.parametrize("task", TASKS)
    def test_in_batches(self, task):
        """Batches of a pass are changed, but not their rows, lengths and targets;
        each pass is changed anew, and a pass without a seed not at all."""
        data = make_dataset(task, counts=(20, 0, 0))
        plain = pipeline.Batches(data, 8)
        noisy = replace(plain, augment=AugmentationConfig(noise=0.5))
        pairs = list(zip(read(plain), read(noisy), strict=True))
        for (rows, frames, *rest), (rows_, frames_, *rest_) in pairs:
            assert_same([(rows, *rest)], [(rows_, *rest_)])
            assert frames.shape == frames_.shape
            assert np.abs(frames - frames_).max() > 0.1
        assert_same(read(noisy), read(noisy))
        assert_same(read(noisy, None), read(plain, None))

        def noise(epoch):
            deviations = {}
            for rows, frames, lengths, _ in read(noisy, (0, epoch)):
                for row, x, length in zip(rows, frames, lengths, strict=True):
                    deviations[int(row)] = x[:length] - data.sequence(row)
            return deviations

        first, second = noise(1), noise(2)
        assert all(np.abs(first[row] - second[row]).max() > 1e-3 for row in first)

    def test_noise_past_the_end(self):
        """Noise behind a sequence's end reaches no answer."""
        data = make_dataset(counts=(20, 0, 0))
        batches = pipeline.Batches(data, 8, augment=AugmentationConfig(noise=0.5))
        network = make_network()
        for _, frames, lengths, _ in read(batches):
            valid = np.arange(frames.shape[1]) < lengths[:, None]
            clean = np.where(valid[:, :, None], frames, 0)
            np.testing.assert_array_equal(
                network(frames, lengths), network(clean, lengths)
            )


def test_lengths_counted():
    """The made data has lengths that vary, without which much here proves nothing."""
    assert len(Counter(make_dataset().lengths.tolist())) > 5
