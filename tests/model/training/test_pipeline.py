"""Batches and statistics of the training data."""

import functools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from model.config import AugmentationConfig
from model.datasets import readers, recombination, spool
from model.datasets.dataset import TASKS, Dataset, default_features
from model.training import loop, pipeline
from tests.support.networks import make_config, make_dataset, make_network

SEED = (5, 1)
# Batches of one sequence, some, all, and more than there are; shuffled or not.
PASSES = ((1, SEED), (7, SEED), (7, None), (41, None), (100, SEED))


@functools.cache
def make_data(task):
    data = make_dataset(task, counts=(41, 0, 0))
    assert len(set(data.lengths.tolist())) > 5  # or the tests would prove little
    return data


@pytest.fixture(params=TASKS)
def data(request):
    return make_data(request.param)


def read(batches, seed=SEED):
    """An epoch's batches as arrays."""
    return [tuple(map(np.asarray, batch)) for batch in batches.epoch(seed)]


@functools.cache
def read_once(task, static, size, seed):
    """Read an epoch of the data, once for all tests."""
    return read(pipeline.Batches(make_data(task), size, static=static), seed)


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
        for size, seed in PASSES:
            epoch = read_once(data.task, static, size, seed)
            assert len(epoch) == len(pipeline.Batches(data, size, static=static))
            assert sorted(order(epoch)) == list(range(len(data)))
            for rows, frames, lengths, targets in epoch:
                assert 1 <= len(rows) <= size
                for row, x, length, y in zip(
                    rows, frames, lengths, targets, strict=True
                ):
                    np.testing.assert_array_equal(x[:length], data.sequence(row))
                    y = y if data.task == "classify" else y[:length]
                    np.testing.assert_array_equal(y, data.target(row))

    def test_arrays(self, data, static):
        """Arrays have the types that the compiled update takes. Past a sequence there
        are zeros, and class 0."""
        for rows, frames, lengths, targets in read_once(data.task, static, 7, SEED):
            assert (rows.dtype, frames.dtype) == (np.int64, np.float32)
            assert lengths.dtype == targets.dtype == np.int32
            padding = np.arange(frames.shape[1]) >= lengths[:, None]
            assert not frames[padding].any()
            if data.task == "label":
                assert not targets[padding].any()

    def test_seed(self, data, static):
        """The same seed gives the same batches; another epoch or seed, other ones."""
        batches = pipeline.Batches(data, 7, static=static)
        first = read_once(data.task, static, 7, SEED)
        assert_same(read(batches), first)
        for other in ((5, 2), (6, 1)):
            assert order(read(batches, other)) != order(first)


def test_as_cut(data):
    """Batches come one by one as the order was cut into them, the shorter one too."""
    for size, seed in PASSES:
        cut = list(pipeline.Batches(data, size)._order(data.lengths, seed))
        epoch = read_once(data.task, False, size, seed)
        assert [rows.tolist() for rows, *_ in epoch] == [rows.tolist() for rows in cut]


def test_nothing(data):
    """Of no sequences there are no batches."""
    for seed in (SEED, None):
        assert read(pipeline.Batches(data.part("test"), 7), seed) == []


def test_lengths(data):
    """A batch is as long as its longest sequence, no step more. Lengths of different
    batches don't interleave, so little is padded."""
    spans = []
    for _, frames, lengths, _ in read_once(data.task, False, 7, SEED):
        assert frames.shape[1] == lengths.max()
        spans.append((lengths.min(), lengths.max()))
    for (_, longest), (shortest, _) in pairwise(sorted(spans)):
        assert longest <= shortest


def test_batches_are_shuffled():
    """Batches don't come from short to long, and companions change."""
    data = make_dataset(counts=(200, 0, 0))
    epochs = [read(pipeline.Batches(data, 10), (0, epoch)) for epoch in range(2)]
    longest = [lengths.max() for _, _, lengths, _ in epochs[0]]
    assert longest != sorted(longest)
    companions = [{frozenset(rows.tolist()) for rows, *_ in e} for e in epochs]
    assert companions[0] != companions[1]


@pytest.mark.parametrize("task", TASKS)
def test_pools(task, monkeypatch):
    """Large sets are sorted in pools: each sequence once, and full batches but one."""
    monkeypatch.setattr(pipeline, "POOL", 4)
    data = make_dataset(task, counts=(203, 0, 0))
    batches = pipeline.Batches(data, 10)
    epoch = read(batches)
    assert sorted(order(epoch)) == list(range(203))
    assert sorted(len(rows) for rows, *_ in epoch) == [3] + [10] * 20
    assert len(epoch) == len(batches)
    assert_same(read(batches), epoch)
    # A pool of four batches has all lengths, and a batch a quarter of them.
    spans = [lengths.max() - lengths.min() for _, _, lengths, _ in epoch]
    assert 0 < np.mean(spans) < 4


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_recombined(static):
    """Batches hold the recombined sequences of their epoch, each once, padded with zeros;
    without a seed, the sequences of the data set."""
    data = make_data("label").part("train")
    recombined = recombination.build(data, 0.5, None)
    batches = pipeline.Batches(data, 7, static=static, recombine=recombined)
    steps, epoch = recombined.epoch(SEED), read(batches)
    assert sorted(order(epoch)) == list(range(len(data)))
    for rows, *batch in epoch:
        for row, frames, length, targets in zip(rows, *batch, strict=True):
            assert length == steps.lengths[row]
            places = steps.places[steps.starts[row] :][:length]
            np.testing.assert_array_equal(frames[:length], data.frames_of[places])
            np.testing.assert_array_equal(targets[:length], data.targets_of[places])
            assert not frames[length:].any()
            assert not targets[length:].any()
    plain = pipeline.Batches(data, 7, static=static)
    assert_same(read(batches, None), read(plain, None))


@pytest.mark.parametrize("task", TASKS)
def test_mapped(task, tmp_path, monkeypatch):
    """A file that is mapped into memory gives the batches of the data in memory, with
    augmentation too."""
    data = make_dataset(task, counts=(41, 9, 0))
    arrays = {"x": data.frames, "lengths": data.lengths, "y": data.targets}
    np.savez(tmp_path / "a.npz", **arrays, classes=data.classes, split=data.split)
    monkeypatch.setattr(spool, "LIMIT", 0)
    monkeypatch.setattr(spool, "BLOCK_BYTES", 100)
    mapped = readers.read(tmp_path / "a.npz", task=task)
    assert not mapped.frames.flags.writeable
    for changes in ({}, {"noise": 0.5}):
        ours, theirs = (
            pipeline.Batches(d.part("train"), 7, augment=AugmentationConfig(**changes))
            for d in (mapped, data)
        )
        assert_same(read(ours), read(theirs))


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


class TestAugmentedBatches:
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

    @pytest.mark.parametrize("task", TASKS)
    def test_time(self, task):
        """Windows and warped time keep rows, and the array's steps."""
        data = make_dataset(task, counts=(20, 0, 0))
        config = AugmentationConfig(time_warp=0.3, window=0.5)
        for static in (False, True):
            plain = pipeline.Batches(data, 8, static=static)
            changed = replace(plain, augment=config)
            lost = 0
            for before, after in zip(read(plain), read(changed), strict=True):
                np.testing.assert_array_equal(before[0], after[0])
                for x, y in zip(before[1:], after[1:], strict=True):
                    assert (x.shape, x.dtype) == (y.shape, y.dtype)
                lost += (before[2] - after[2]).sum()
            assert lost > 0

    def test_statistics(self):
        """Noise is in deviations of the features, and the erased their mean, of the
        part, whatever the network's normalisation is."""
        data = make_dataset(counts=(300, 0, 0))
        data = replace(data, frames=data.frames * [1, 50, 0.1] + [0, 900, 1])
        mean, deviation = data.frames.mean(0), data.frames.std(0)
        noisy, erased = (
            np.concatenate([frames for _, frames, _, _ in read(batches, (1, 2))], 0)
            for batches in (
                pipeline.Batches(data, 300, augment=AugmentationConfig(noise=0.5)),
                pipeline.Batches(data, 300, augment=AugmentationConfig(erase=0.999)),
            )
        )
        _, plain, lengths, _ = read(pipeline.Batches(data, 300), (1, 2))[0]
        valid = np.arange(plain.shape[1]) < lengths[:, None]
        noise = (noisy - plain)[valid]
        np.testing.assert_allclose(noise.std(0), 0.5 * deviation, rtol=0.1)
        np.testing.assert_allclose(np.median(erased[valid], 0), mean, rtol=1e-5)

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
