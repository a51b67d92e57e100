"""Join consecutive frames to one step of the recurrent layers (`--stack`).

With a stack of K frames a layer takes a K-th of the steps, each of K * F numbers. The
last stack of a sequence may be incomplete; zeros fill it, after the normalisation.

A stream may end within a stack. Its state holds the last K - 1 frames, and the number of
those that no full stack has taken: the rest. The next frames are put behind the rest.
"""

from typing import NamedTuple

import tensorflow as tf


def join(x, lengths, size):
    """Return whole sequences [B, T, F] as steps [B, ceil(T / size), size * F], and their
    numbers [B] of steps.

    Args:
        x: normalised frames, zero past each length.
        size: K, the frames in a stack.
    """
    steps = x.shape[1] or tf.shape(x)[1]  # a number for static unrolling
    stacks = (steps + size - 1) // size
    x = tf.pad(x, [[0, 0], [0, stacks * size - steps], [0, 0]])
    x = tf.reshape(x, [-1, stacks, size * x.shape[2]])
    return x, (lengths + size - 1) // size


class Pieces(NamedTuple):
    """The full stacks of a stream's frames, and the rest; K frames are a stack.

    Frames that are not valid are undefined.
    """

    full: tf.Tensor  # [B, N * K, F]
    steps: tf.Tensor  # [B], full stacks that are valid
    rest: tf.Tensor  # [B, K, F]
    left: tf.Tensor  # [B], frames of the rest that are valid, at most K - 1
    window: tf.Tensor  # [B, (K - 1) * F], for the state
    number: tf.Tensor  # [B, 1], `left` for the state


def cut(frames, lengths, window, count, size):
    """Put new frames behind the rest of earlier ones, and cut them into stacks.

    Args:
        frames, lengths: [B, T, F] and [B]; a row of length 0 keeps its window and count.
        window, count: of the state after the earlier frames; zeros start a sequence.
        size: K, the frames in a stack.
    """
    features, steps = frames.shape[2], tf.shape(frames)[1]
    window = tf.reshape(window, [-1, size - 1, features])
    joined = tf.concat([window, frames], 1)
    # A caller may have changed the state: an index never leaves the frames.
    left = tf.clip_by_value(tf.cast(count[:, 0], tf.int32), 0, size - 1)
    first = size - 1 - left
    full = (left + lengths) // size
    after = left + lengths - full * size

    def take(start, number):
        places = start[:, None] + tf.range(number)
        places = tf.minimum(places, steps + size - 2)
        return tf.gather(joined, places, axis=1, batch_dims=1)

    return Pieces(
        full=take(first, (steps + size - 1) // size * size),
        steps=full,
        rest=take(first + full * size, size),
        left=after,
        window=tf.reshape(take(lengths, size - 1), [-1, (size - 1) * features]),
        number=tf.cast(after, tf.float32)[:, None],
    )
