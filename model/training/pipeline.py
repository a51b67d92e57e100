"""Turn a data set into batches with tf.data: statistics, length buckets, padding."""

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from model.config import AugmentationConfig
from model.datasets.dataset import Dataset
from model.training import augmentation

BUCKETS = 8  # padded lengths, each with a compiled graph, for static unrolling


def normalization(dataset: Dataset, normalise: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and scale [F] that give frames zero mean and unit deviation.

    A mostly constant feature is scaled by its range instead (to 50), and a constant one
    like the average feature, so that neither gets huge on other data. Features may have
    very different units: each is scaled by itself.
    """
    features = dataset.frames.shape[1]
    if normalise == "none":
        return np.zeros(features, np.float32), np.ones(features, np.float32)
    mean = dataset.frames.mean(0, dtype=np.float64)
    deviation = dataset.frames.std(0, dtype=np.float64)
    average = np.sqrt(np.square(deviation).mean()) or 1.0
    if normalise == "whole":
        mean = np.full(features, mean.mean())
        average = dataset.frames.std(dtype=np.float64) or 1.0
        deviation = np.full(features, average)
    if normalise == "features":
        span = np.abs(dataset.frames - mean).max(0)
        varies = deviation > 1e-6 * np.abs(mean)
        deviation = np.where(varies, np.maximum(deviation, span / 50), average)
    return mean.astype(np.float32), (1 / deviation).astype(np.float32)


@dataclass(frozen=True)
class Batches:
    """Batches of one part, in a new order for each epoch, which its seed determines.

    Sequences of similar length share a batch: they are shuffled, sorted by length, cut
    into batches, and the batches are shuffled.
    """

    dataset: Dataset
    batch_size: int
    static: bool = False
    augment: AugmentationConfig | None = None

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, seed: tuple[int, int] | None = None) -> tf.data.Dataset:
        """Iterate once over the part.

        Args:
            seed: for shuffling and augmentation; None keeps the order by length.

        Yields:
            rows [B] (their numbers in the dataset), frames [B, T, F],
            lengths [B], targets [B] or [B, T]. Augmented ones are undefined past a
            length.
        """
        tensors = self._tensors
        batches = self._order(seed)
        flat = np.concatenate([*batches, np.empty(0, np.int64)])
        sizes = np.array([len(rows) for rows in batches], np.int64)
        # Not `tf.ragged.constant`, which loops over the rows in Python.
        with tf.device("CPU:0"):
            rows = tf.RaggedTensor.from_row_lengths(flat, sizes)
        data = tf.data.Dataset.from_tensor_slices(rows).enumerate()
        data = data.map(lambda index, rows: (index, self._gather(rows, *tensors)))
        data = data.map(lambda index, batch: self._augment(index, batch, seed))
        return data.prefetch(4)

    def _augment(self, index, batch, seed: tuple[int, int] | None):
        if seed is None or self.augment is None:
            return batch
        rows, frames, lengths, targets = batch
        mean, scale = self._statistics
        changed = augmentation.apply(
            frames,
            lengths,
            targets,
            self.augment,
            mean=mean,
            deviation=1 / scale,
            # Negative: dropout is drawn from (seed, epoch).
            seed=tf.random.experimental.stateless_fold_in((seed[0], -seed[1]), index),
        )
        return rows, *changed

    def _order(self, seed: tuple[int, int] | None) -> list[np.ndarray]:
        lengths = self.dataset.lengths
        if seed is None:
            order = np.argsort(lengths, kind="stable")
            return self._cut(order)
        random = np.random.default_rng(seed)
        order = random.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = self._cut(order)
        return [batches[index] for index in random.permutation(len(batches))]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        starts = range(0, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    @functools.cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and scale of each feature, however the network normalises them."""
        return normalization(self.dataset, "features")

    @functools.cached_property
    def _tensors(self) -> list[tf.Tensor]:
        """The data as tensors. Constants in the graph would be copied for each epoch,
        and limited to 2 GB."""
        data = self.dataset
        with tf.device("CPU:0"):
            arrays = (data.frames, data.lengths, data.offsets, data.targets)
            return [tf.constant(array) for array in arrays]

    def _gather(self, rows, frames, lengths, offsets, targets):
        lengths = tf.gather(lengths, rows)
        steps = self._padded_length(tf.reduce_max(lengths))
        starts = tf.gather(offsets, rows)
        valid = tf.sequence_mask(lengths, steps)
        places = tf.where(
            valid, starts[:, None] + tf.range(tf.cast(steps, tf.int64)), 0
        )
        frames = tf.gather(frames, places)
        frames = tf.where(valid[:, :, None], frames, 0.0)
        if self.dataset.task == "classify":
            targets = tf.gather(targets, rows)
        else:
            targets = tf.gather(targets, places)
            targets = tf.where(valid, targets, 0)
        return rows, frames, lengths, targets

    def _padded_length(self, longest):
        """Return the steps of a batch: its longest sequence, or the end of its bucket."""
        if not self.static:
            return longest
        quantiles = np.linspace(0, 1, BUCKETS + 1)[1:]
        ends = np.quantile(self.dataset.lengths, quantiles, method="higher")
        ends = np.unique(ends).astype(np.int32)
        return tf.gather(ends, tf.searchsorted(ends, longest[None])[0])
