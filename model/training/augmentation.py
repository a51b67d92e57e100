"""Augmentation: random changes of training frames that don't change their class.

Everything is drawn from an explicit seed, so that a run can be repeated, and an
interrupted run resumes as if it had never stopped.
"""

import numpy as np
import tensorflow as tf

from model.config import AugmentationConfig, ConfigError
from model.datasets.dataset import Dataset


def check(config: AugmentationConfig, dataset: Dataset) -> None:
    """Refuse settings that don't fit the data.

    Raises:
        ConfigError: the image's size fits neither frames nor sequences, or is missing.
    """
    moves = config.shift or config.rotate or config.zoom or config.shear
    if config.image is None:
        if moves:
            raise ConfigError("augmentation.image: its height and width are needed")
        return
    height, width = config.image
    features = dataset.frames.shape[1]
    rows = features == width and bool((dataset.lengths == height).all())
    if min(height, width) < 1 or (not rows and features != height * width):
        raise ConfigError(
            f"augmentation.image: {height} x {width} is neither the size of a frame"
            f" ({features} values) nor that of every sequence"
        )


def apply(frames, config: AugmentationConfig, *, scale=None, seed):
    """Return changed `frames` [B, T, F].

    With `config.image` = (height, width), a frame of height * width values is an
    image; a frame of `width` values is a row of the image that the whole
    sequence makes. Each image is rotated, zoomed, sheared and shifted by its own
    random amounts.

    Args:
        scale: [F], one over the deviation of each feature, for `config.noise` and
            `config.offset`.
        seed: [2] int32.
    """
    seeds = tf.random.experimental.stateless_split(seed, 4)
    warp_seed, erase_seed, noise_seed, offset_seed = tf.unstack(seeds)
    deviation = 1.0 if scale is None else 1 / np.asarray(scale, np.float32)
    if config.image and (config.shift or config.rotate or config.zoom or config.shear):
        height, width = config.image
        shape = tf.shape(frames)
        images = tf.reshape(frames, (-1, height, width, 1))
        frames = tf.reshape(_warp(images, config, height, width, warp_seed), shape)
    if config.erase:
        draw = tf.random.stateless_uniform(tf.shape(frames), erase_seed)
        frames = tf.where(draw < config.erase, 0.0, frames)
    if config.noise:
        noise = tf.random.stateless_normal(tf.shape(frames), noise_seed)
        frames += config.noise * deviation * noise
    if config.offset:
        shape = tf.stack([tf.shape(frames)[0], 1, tf.shape(frames)[2]])
        offset = tf.random.stateless_normal(shape, offset_seed)
        frames += config.offset * deviation * offset
    return frames


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
