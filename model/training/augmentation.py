"""Augmentation: random changes of training sequences that don't change their class.

Everything is drawn from an explicit seed, so that a run can be repeated, and an
interrupted run resumes as if it had never stopped.
"""

import numpy as np
import tensorflow as tf

from model.config import AugmentationConfig, ConfigError
from model.datasets.dataset import Dataset

WORD_DROPOUT = 0.25
LETTERS_DROPOUT = 0.1  # of words that are read by characters
# What changes the numbers of frames.
FRAMES = (
    *("image", "shift", "rotate", "zoom", "shear", "time_warp", "window"),
    *("magnitude", "erase", "noise", "offset"),
)
CURVES = 4  # cosines that a change of speed is made of


class WordDropout:
    """Makes words or categories of training sequences unknown, so that a network learns
    what to do with those that it has never seen, and does not rely on one alone.

    Rare ones are dropped more often (Kiperwasser and Goldberg, *Simple and Accurate
    Dependency Parsing*, TACL 2016). Of characters those of some words are.
    """

    def __init__(self, dataset: Dataset):
        """
        Args:
            dataset: of text or records, for training.
        """
        vocabulary = dataset.vocabulary
        # Places of the columns with a list of known names, and their chances to be dropped.
        places = [i for i, column in enumerate(dataset.columns) if column.size]
        places = places[:1] if vocabulary is not None else places
        self._dropped = {place: _chances(dataset, place) for place in places}
        self._buckets, self._space = 0, None
        if vocabulary is not None and len(vocabulary.columns) > 1:
            self._buckets = vocabulary.columns[1].size
        if vocabulary is not None and vocabulary.kind == "characters":
            self._space = vocabulary.row(" ")[0]

    @classmethod
    def of(cls, dataset: Dataset) -> "WordDropout | None":
        """Return the one for a data set; None if it holds plain frames."""
        return cls(dataset) if dataset.columns else None

    def apply(self, ids: np.ndarray, random: np.random.Generator) -> None:
        """Change the ids [B, T, K] of some words: the word is unknown, its hash another."""
        if self._space is not None:
            spaces = ids[:, :, 0].astype(np.int64) == self._space
            draw = random.random(spaces.shape)
            word = np.cumsum(spaces, 1)
            draw = np.take_along_axis(draw, word, 1)  # one for all letters of a word
            ids[(draw < LETTERS_DROPOUT) & ~spaces, 0] = 0
            return
        for place, chances in self._dropped.items():
            words = ids[:, :, place].astype(np.int64)
            dropped = random.random(words.shape) < chances[words]
            ids[dropped, place] = 0
            if self._buckets:
                ids[dropped, 1] = random.integers(0, self._buckets, int(dropped.sum()))


def _chances(dataset: Dataset, place: int) -> np.ndarray:
    """Return the chance of each id of a column to be dropped."""
    size = dataset.columns[place].size
    counts = np.zeros(size, np.int64)
    for block in dataset.blocks():
        counts += np.bincount(block[:, place].astype(np.int64), minlength=size)
    return WORD_DROPOUT / (WORD_DROPOUT + counts)


def check(config: AugmentationConfig, dataset: Dataset) -> None:
    """Refuse settings that don't fit the data.

    Raises:
        ConfigError: the image's size fits neither frames nor sequences, or is missing; or
            a setting is for frames and the data is text or records.
    """
    if dataset.columns:
        kind = "text" if dataset.vocabulary else "records"
        for name in FRAMES:
            if getattr(config, name):
                raise ConfigError(f"augmentation.{name}: is for frames, not for {kind}")
    moves = config.shift or config.rotate or config.zoom or config.shear
    if config.image is None:
        if moves:
            raise ConfigError("augmentation.image: its height and width are needed")
        return
    height, width = config.image
    features = len(dataset.features)
    rows = features == width and bool((dataset.lengths == height).all())
    if min(height, width) < 1 or (not rows and features != height * width):
        raise ConfigError(
            f"augmentation.image: {height} x {width} is neither the size of a frame"
            f" ({features} values) nor that of every sequence"
        )


def apply(
    frames,
    lengths,
    targets,
    config: AugmentationConfig,
    *,
    mean=0.0,
    deviation=1.0,
    seed,
):
    """Return changed frames [B, T, F], their lengths [B], and their targets.

    With `config.image` = (height, width), a frame of height * width values is an
    image; a frame of `width` values is a row of the image that the whole
    sequence makes. Each image is rotated, zoomed, sheared and shifted by its own
    random amounts. Images are moved first, then time; the values change last.

    Args:
        frames, lengths: frames past a length change no other; those of the result are
            undefined.
        targets: [B], or [B, T] for labels of steps, which follow their frames.
        mean, deviation: [F], statistics of each feature for the changes of values.
        seed: [2] int32.
    """
    seeds = tf.random.experimental.stateless_split(seed, 6)
    warp_seed, erase_seed, noise_seed, offset_seed, *seeds = tf.unstack(seeds)
    time_seed, magnitude_seed = seeds
    if config.image and (config.shift or config.rotate or config.zoom or config.shear):
        height, width = config.image
        shape = tf.shape(frames)
        images = tf.reshape(frames, (-1, height, width, 1))
        frames = tf.reshape(_warp(images, config, height, width, warp_seed), shape)
    if config.time_warp or config.window:
        places, lengths = _places(lengths, tf.shape(frames)[1], config, time_seed)
        frames, targets = _read(frames, targets, places)
    values = tf.shape(frames)
    features = tf.stack([values[0], 1, values[2]])
    if config.magnitude:
        factor = config.magnitude * tf.random.stateless_normal(features, magnitude_seed)
        frames = mean + (frames - mean) * tf.exp(factor)
    if config.erase:
        draw = tf.random.stateless_uniform(values, erase_seed)
        frames = tf.where(draw < config.erase, mean, frames)
    if config.noise:
        noise = tf.random.stateless_normal(values, noise_seed)
        frames += config.noise * deviation * noise
    if config.offset:
        offset = tf.random.stateless_normal(features, offset_seed)
        frames += config.offset * deviation * offset
    return frames, lengths, targets


def _places(lengths, steps, config: AugmentationConfig, seed):
    """Return the places [B, T] of new steps in their old sequences, and the new lengths.

    A window is any piece of at least `1 - config.window` of the steps. In a time warp
    the speed is `1 + config.time_warp * curve(t)`, where `curve` is a sum of cosines
    with random weights, whose absolute values add up to 1. Each cosine completes half
    periods, so that the average speed is 1 and both ends stay.
    """
    draw = tf.random.stateless_uniform((tf.shape(lengths)[0], 2 + CURVES), seed)
    start = tf.zeros_like(draw[:, :1])
    if config.window:
        most = tf.floor(config.window * tf.cast(lengths, draw.dtype))
        cut = tf.floor(draw[:, 0] * (most + 1))
        start = tf.floor(draw[:, 1] * (cut + 1))[:, None]
        lengths -= tf.cast(cut, lengths.dtype)
    last = tf.cast(lengths - 1, draw.dtype)[:, None]
    time = tf.minimum(tf.range(steps, dtype=draw.dtype), last)  # [B, T]
    if config.time_warp:
        weights = 2 * draw[:, 2:] - 1
        weights /= tf.reduce_sum(tf.abs(weights), 1, keepdims=True)
        rate = np.pi * np.arange(1, CURVES + 1, dtype=np.float32)
        curves = tf.sin((time / tf.maximum(last, 1))[:, :, None] * rate) / rate
        ahead = config.time_warp * last * tf.einsum("btk,bk->bt", curves, weights)
        time = tf.clip_by_value(time + ahead, 0, last)
    return start + time, lengths


def _read(frames, targets, places):
    """Return frames and labels at `places` [B, T]: between two steps the frame is
    interpolated, and the label that of the nearer step."""
    before, after = (tf.cast(f(places), tf.int32) for f in (tf.floor, tf.math.ceil))
    share = (places - tf.floor(places))[:, :, None]
    first, second = (tf.gather(frames, x, batch_dims=1) for x in (before, after))
    if targets.shape.rank == 2:
        nearest = tf.where(share[:, :, 0] < 0.5, before, after)
        targets = tf.gather(targets, nearest, batch_dims=1)
    return (1 - share) * first + share * second, targets


def _warp(images, config: AugmentationConfig, height: int, width: int, seed):
    """Apply a random affine map to each image: about its centre, bilinear, zero-padded."""
    count = tf.shape(images)[0]
    draw = tf.random.stateless_uniform((count, 6), seed, -1.0, 1.0)
    angle = draw[:, 0] * config.rotate * np.pi / 180
    zoom_x, zoom_y = 1 + draw[:, 1] * config.zoom, 1 + draw[:, 2] * config.zoom
    slant = draw[:, 3] * config.shear
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b = zoom_x * cos, zoom_x * (slant * cos - sin)
    c, d = zoom_y * sin, zoom_y * (slant * sin + cos)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = middle_x + draw[:, 4] * config.shift - a * middle_x - b * middle_y
    y = middle_y + draw[:, 5] * config.shift - c * middle_x - d * middle_y
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, x, c, d, y, zero, zero], 1),  # output -> input
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
