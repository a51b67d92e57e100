"""Turn a data set into batches: statistics, batches of similar lengths, padding.

Batches are gathered by a thread while the network computes, so that frames may stay in a
file that is mapped into memory.
"""

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from model.config import AugmentationConfig
from model.datasets.dataset import Dataset
from model.datasets.recombination import Recombination, Steps
from model.datasets.summary import by_feature
from model.training import augmentation
from model.training.augmentation import WordDropout

AHEAD = 4  # batches that are gathered before they are needed
POOL = 100  # batches whose sequences are sorted by length together
BUCKETS = 8  # padded lengths, each with a compiled graph, for static unrolling


def normalization(dataset: Dataset, normalise: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and scale [F] that give frames zero mean and unit deviation.

    A mostly constant feature is scaled by its range instead (to 50), and a constant one
    like the average feature, so that neither gets huge on other data. Features may have
    very different units: each is scaled by itself.
    """
    features = len(dataset.features)
    if normalise == "none":
        return np.zeros(features, np.float32), np.ones(features, np.float32)
    count, mean, squares = 0, np.zeros(features), np.zeros(features)
    lowest, highest = np.full(features, np.inf), np.full(features, -np.inf)
    for columns in map(by_feature, dataset.blocks()):
        # Chan, Golub and LeVeque (1983): the deviations of each block are merged.
        size, middle = columns.shape[1], columns.mean(1, dtype=np.float64)
        inner = np.square(columns - middle[:, None]).sum(1)  # float64
        step, total = middle - mean, count + size
        mean += step * size / total
        squares += inner + np.square(step) * (count * size / total)
        count = total
        lowest = np.minimum(lowest, columns.min(1))
        highest = np.maximum(highest, columns.max(1))
    deviation = np.sqrt(squares / count)
    span = np.maximum(highest - mean, mean - lowest)
    average = np.sqrt(np.square(deviation).mean()) or 1.0
    if normalise == "whole":
        average = np.sqrt(np.square(deviation).mean() + mean.var()) or 1.0
        mean = np.full(features, mean.mean())
        deviation = np.full(features, average)
    if normalise == "features":
        varies = deviation > 1e-6 * np.abs(mean)
        deviation = np.where(varies, np.maximum(deviation, span / 50), average)
    return mean.astype(np.float32), (1 / deviation).astype(np.float32)


@dataclass(frozen=True)
class Batches:
    """Batches of one part, in a new order for each epoch, which its seed determines.

    Sequences of similar length share a batch: all are shuffled and cut into pools of
    about `POOL` batches. A pool is sorted by length and cut into batches, which are
    shuffled.
    """

    dataset: Dataset
    batch_size: int
    static: bool = False
    augment: AugmentationConfig | None = None
    recombine: Recombination | None = None  # of the same data set

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, seed: tuple[int, int] | None = None) -> Iterator[tuple]:
        """Yield the batches of one epoch; by length, and as they are, if `seed` is None.

        Args:
            seed: the run's seed and the number of the epoch.

        Yields:
            rows [B] (their numbers in the data set; a recombined sequence has that of the
            one that it replaces), and the tensors frames [B, T, F], lengths [B], targets
            [B] or [B, T]. Augmented ones are undefined past a length.
        """
        steps = None
        if seed is not None and self.recombine is not None:
            steps = self.recombine.epoch(seed)
        lengths = self.dataset.lengths if steps is None else steps.lengths
        waiting: deque[Future[tuple]] = deque()
        with ThreadPoolExecutor(1, "batches") as thread:
            for index, rows in enumerate(self._order(lengths, seed)):
                waiting.append(thread.submit(self._batch, index, rows, seed, steps))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _batch(
        self,
        index: int,
        rows: np.ndarray,
        seed: tuple[int, int] | None,
        steps: Steps | None,
    ) -> tuple:
        arrays = (
            self._gather(rows) if steps is None else self._gather_steps(rows, steps)
        )
        if seed is not None and self._word_dropout is not None:
            self._word_dropout.apply(arrays[0], np.random.default_rng((*seed, index)))
        batch = tuple(map(tf.convert_to_tensor, arrays))
        if seed is not None and self._augment is not None:
            # Negative: dropout is drawn from (seed, epoch).
            draw = tf.constant((seed[0], -seed[1], index), tf.int32)
            batch = self._augment(*batch, draw)
        return rows, *batch

    @functools.cached_property
    def _word_dropout(self) -> WordDropout | None:
        return WordDropout.of(self.dataset)

    @functools.cached_property
    def _augment(self):
        """The compiled augmentation of a batch by a seed [3]; None if there is none."""
        config = self.augment
        unused = {"image", "recombine", "recombine_words"}
        if config is None or not any(config.model_dump(exclude=unused).values()):
            return None
        # However the network normalises features.
        mean, scale = normalization(self.dataset, "features")

        def apply(frames, lengths, targets, seed):
            seed = tf.random.experimental.stateless_fold_in(seed[:2], seed[2])
            options = {"mean": mean, "deviation": 1 / scale, "seed": seed}
            with tf.device("CPU:0"):
                return augmentation.apply(frames, lengths, targets, config, **options)

        by_step = self.dataset.task == "label"
        signature = [
            tf.TensorSpec((None, None, len(self.dataset.features)), tf.float32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None, None) if by_step else (None,), tf.int32),
            tf.TensorSpec((3,), tf.int32),
        ]
        return tf.function(apply, input_signature=signature)

    def _order(
        self, lengths: np.ndarray, seed: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        """Yield the numbers of each batch's sequences."""
        size = self.batch_size
        if seed is None:
            yield from _cut(np.argsort(lengths, kind="stable"), size)
            return
        if not len(self):
            return
        random = np.random.default_rng(seed)
        order = random.permutation(len(lengths))
        pools = max(1, round(len(self) / POOL))
        for pool in np.array_split(np.arange(len(self)), pools):
            rows = order[pool[0] * size : (pool[-1] + 1) * size]
            batches = _cut(rows[np.argsort(lengths[rows], kind="stable")], size)
            for index in random.permutation(len(batches)):
                yield batches[index]

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return frames, lengths and targets of a batch, padded with zeros."""
        data = self.dataset
        lengths, starts = data.lengths[rows], data.starts[rows].tolist()
        shape = (len(rows), self._padded_length(lengths.max()))
        frames = np.zeros((*shape, len(data.features)), np.float32)
        by_step = data.task == "label"
        targets = np.zeros(shape, np.int32) if by_step else data.targets[rows]
        places = zip(starts, lengths.tolist(), strict=True)
        for row, (start, length) in enumerate(places):
            frames[row, :length] = data.frames_of[start : start + length]
            if by_step:
                targets[row, :length] = data.targets_of[start : start + length]
        return frames, lengths, targets

    def _gather_steps(
        self, rows: np.ndarray, steps: Steps
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of a batch of recombined sequences, which have a label a step."""
        data, lengths = self.dataset, steps.lengths[rows]
        valid = np.arange(self._padded_length(lengths.max())) < lengths[:, None]
        spans = zip(steps.starts[rows].tolist(), lengths.tolist(), strict=True)
        places = np.concatenate(
            [steps.places[start : start + length] for start, length in spans]
        )
        frames = np.zeros((*valid.shape, len(data.features)), np.float32)
        targets = np.zeros(valid.shape, np.int32)
        frames[valid], targets[valid] = data.frames_of[places], data.targets_of[places]
        return frames, lengths, targets

    def _padded_length(self, longest: int) -> int:
        """Return the steps of a batch: its longest sequence, or the end of its bucket."""
        if not self.static:
            return longest
        return int(self._ends[np.searchsorted(self._ends, longest)])

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        quantiles = np.linspace(0, 1, BUCKETS + 1)[1:]
        return np.unique(np.quantile(self.dataset.lengths, quantiles, method="higher"))


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
