"""The recurrent network: encoder, classifier or labeller, cost and errors.

The method is Danijar Hafner's *Introduction to Recurrent Networks in TensorFlow*
(2016) with its sequel on variable sequence lengths. Where those guess a length
from zero frames, lengths are an input here.

Sequences are padded on the right only. A forward layer then needs no mask: its output
at a valid step can't depend on the padding behind it. Masks are only used where a
*state* leaves the graph (`step`), and in the cost.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from model.bundle import metadata
from model.bundle.vocabulary import Column
from model.config import ConfigError, NetworkConfig
from model.datasets.dataset import Task
from model.network import recurrence, stacking

EMBEDDED = 0.5  # embeddings begin between plus and minus this


class Network(keras.Model):  # type: ignore[misc]
    """Normalise frames, run the recurrent layers, and score each class.

    A call returns logits: [B, C] for the task classify, [B, T, C] for label.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        task: Task,
        features: int,
        classes: int,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        columns: Sequence[Column] = (),
        cudnn: bool = True,
        mixed: bool = False,
    ):
        """
        Args:
            columns: of ids, in place of frames; an embedding stands for each id. One of
                size 0 holds numbers, which are normalised as frames are.
            mean, scale: [F]; frames become `(frames - mean) * scale` in the graph.
            cudnn: use cuDNN kernels on a GPU. False keeps them out of the graph, so
                that an export runs everywhere.
            mixed: compute the recurrent layers in float16. Weights, sums and logits stay
                float32.

        Raises:
            ConfigError: see `check`.
        """
        super().__init__()
        check(config, task)
        if columns and config.stack > 1:
            raise ConfigError("network.stack: stacks are for frames, not for text")
        self.stack = config.stack
        if task == "label":  # each output is read
            config = config.model_copy(update={"read": "last"})
        self.read = config.read
        self._vectors = 2 if config.cell == "lstm" else 1  # of a layer's state
        self.config, self.task, self.features = config, task, features
        self.mean = self._constant("mean", (features,), mean)
        self.scale = self._constant("scale", (features,), scale, 1.0)
        self.temperature = self._constant("temperature", (), None, 1.0)
        self.columns = tuple(columns)
        self.embeddings = [
            self.add_weight(
                shape=(column.size, column.width),
                initializer=keras.initializers.RandomUniform(-EMBEDDED, EMBEDDED),
                name=f"embedding_{column.name}",
            )
            for column in self.columns
            if column.size
        ]
        names = ("forward", "backward")[: 2 if config.bidirectional else 1]
        self.encoder = [
            [_recurrent(config, cudnn, mixed, f"{name}_{index}") for name in names]
            for index in range(config.layers)
        ]
        self.head = keras.layers.Dense(classes, name="logits")
        width = sum(c.width for c in self.columns) or self.stack * features
        for directions in self.encoder:
            for layer in directions:
                layer.build((None, None, width))
            width = config.hidden * len(directions)
        self.head.build((None, width * len(self.read.split("+"))))
        self.built = True

    @property
    def state_size(self) -> int:
        """Floats of state for one sequence; 0 if the network is bidirectional."""
        config = self.config
        return metadata.state_size(
            *(config.cell, config.layers, config.hidden, config.bidirectional),
            *(self.read, self.stack, self.features),
        )

    @property
    def sums(self) -> slice:
        """Places of the outputs' sum in the state; see `Metadata.sums`."""
        config = self.config
        return metadata.sums_in_state(
            *(config.cell, config.layers, config.hidden, config.bidirectional),
            self.read,
        )

    def _constant(self, name, shape, value, default=0.0):
        value = default if value is None else value
        weight = self.add_weight(
            shape=shape, initializer="zeros", trainable=False, name=name
        )
        weight.assign(np.broadcast_to(np.asarray(value, np.float32), shape))
        return weight

    def call(self, frames, lengths, seed=None, prefixes=False):
        """Return the logits of whole sequences.

        Args:
            frames: [B, T, F] float32; frames past a length are ignored.
            lengths: [B] int32, at least 1.
            seed: [2] int32; turns dropout on, and makes it repeatable.
            prefixes: return the logits [B, T, C] after each step; see `check_prefixes`.
        """
        x = self._normalize(frames, lengths)
        if seed is not None and self.columns and self.config.embedding_dropout:
            layer_seed = tf.random.experimental.stateless_fold_in(seed, -1)
            rate = self.config.embedding_dropout
            dropped = tf.nn.experimental.stateless_dropout(x, rate, layer_seed)
            embedded = [bool(c.size) for c in self.columns for _ in range(c.width)]
            x = dropped if all(embedded) else tf.where(embedded, dropped, x)
        if self.stack > 1:
            x, lengths = stacking.join(x, lengths, self.stack)
        for index, directions in enumerate(self.encoder):
            outputs = [directions[0](x)]  # [B, T, H]
            if len(directions) == 2:
                backward = directions[1](tf.reverse_sequence(x, lengths, seq_axis=1))
                outputs.append(tf.reverse_sequence(backward, lengths, seq_axis=1))
            x = tf.concat(outputs, 2)
            if seed is not None and self.config.dropout:
                layer_seed = tf.random.experimental.stateless_fold_in(seed, index)
                rate = self.config.dropout
                x = tf.nn.experimental.stateless_dropout(x, rate, layer_seed)
        x = tf.cast(x, tf.float32)
        if self.task == "label" or prefixes:
            return self.head(x)
        total = tf.reduce_sum(_masked(x, lengths), 1)
        count = tf.cast(lengths, x.dtype)[:, None]
        return self.head(self._read(self._last(x, lengths), total, count))

    def step(self, frames, lengths, state):
        """Continue sequences with more frames; return logits and the new state.

        Args:
            state: [B, S], returned by an earlier call; zeros start a sequence. See
                `model.bundle.metadata.state_size`.

        Returns:
            logits (classify: after the last valid step), state [B, S]. A row of
            length 0 keeps its state.
        """
        before = self._split(state)
        if self.stack == 1:
            x = self._normalize(frames, lengths)
            x, after = self._advance(x, lengths, before)
            x = x if self.task == "label" else self._answer(after)
            return self.head(x), tf.concat(after, 1)
        *before, window, count = before
        pieces = stacking.cut(frames, lengths, window, count, self.stack)
        x = self._normalize(pieces.full, self.stack * pieces.steps)
        _, after = self._advance(self._join(x), pieces.steps, before)
        # The answer reads the rest as an incomplete stack; the state does not.
        x = self._normalize(pieces.rest, pieces.left)
        rest = tf.minimum(pieces.left, 1)
        _, answer = self._advance(self._join(x), rest, after)
        state = tf.concat([*after, pieces.window, pieces.number], 1)
        return self.head(self._answer(answer)), state

    def _split(self, state):
        """Split a state [B, S] into its parts, in the order in which `step` joins them."""
        sizes = [self.config.hidden] * self.config.layers * self._vectors
        if self.read != "last":
            sizes += [self.config.hidden, 1]
        if self.stack > 1:
            sizes += [(self.stack - 1) * self.features, 1]
        return tf.split(state, sizes, 1)

    def _advance(self, x, lengths, before):
        """Run the forward layers from the vectors and sums `before`; return the outputs
        [B, T, H], and the vectors and sums after the last valid step."""
        after, vectors = [], self._vectors
        for index, (layer,) in enumerate(self.encoder):
            initial = before[index * vectors : (index + 1) * vectors]
            x, final = recurrence.run_layer(layer, x, lengths, initial)
            after += final
        if self.read != "last":
            # Step after step, so that the order of the additions, and with it the
            # answer, doesn't depend on how a sequence is cut into calls.
            total, steps = before[len(after) :]
            sums = tf.concat([total[:, None], _masked(x, lengths)], 1)
            total = tf.cumsum(sums, 1)[:, -1]
            after += [total, steps + tf.cast(lengths, x.dtype)[:, None]]
        return x, after

    def _answer(self, after):
        """Return what the classifier reads, [B, W], of the vectors and sums after a step."""
        last = after[
            (self.config.layers - 1) * self._vectors
        ]  # [B, H], the top layer's
        if self.read == "last":
            return last
        *_, total, steps = after
        return self._read(last, total, tf.maximum(steps, 1.0))

    def probabilities(self, logits):
        """Return calibrated class probabilities, in the shape of `logits`."""
        return tf.nn.softmax(logits / self.temperature)

    def for_export(self) -> "Network":
        """Return a copy without cuDNN kernels, with a loop over time that returns states."""
        config = self.config.model_copy(update={"unroll": "dynamic"})
        copy = self._copy(config, cudnn=False)
        for directions in copy.encoder:
            for layer in directions:
                layer.return_state = not config.bidirectional
        return copy

    def in_float32(self) -> "Network":
        """Return a network that computes with the same weights in float32 alone."""
        mixed = self.encoder[0][0].compute_dtype != "float32"
        return self._copy(self.config, cudnn=True) if mixed else self

    def _copy(self, config: NetworkConfig, *, cudnn: bool) -> "Network":
        copy = Network(
            config,
            task=self.task,
            features=self.features,
            classes=self.head.units,
            columns=self.columns,
            cudnn=cudnn,
        )
        copy.set_weights(self.get_weights())
        return copy

    def inputs(self, frames: np.ndarray) -> np.ndarray:
        """Return what the first layer reads of frames [N, F], as [N, W]."""
        lengths = tf.constant([len(frames)])
        return self._normalize(tf.constant(frames[None]), lengths)[0].numpy()

    def _normalize(self, frames, lengths):
        mask = tf.sequence_mask(lengths, tf.shape(frames)[1])[:, :, None]
        if self.columns:
            return tf.where(mask, self._embed(frames), 0.0)
        return tf.where(mask, (frames - self.mean) * self.scale, 0.0)

    def _embed(self, ids):
        """Return the embeddings and numbers [B, T, W] of the columns [B, T, K]. An id that
        doesn't exist reads the nearest one: it must not fail the others of its batch."""
        parts, tables = [], iter(self.embeddings)
        for index, column in enumerate(self.columns):
            if not column.size:
                number = ids[:, :, index : index + 1]
                parts.append((number - self.mean[index]) * self.scale[index])
                continue
            table = next(tables)
            places = tf.cast(ids[:, :, index], tf.int32)
            places = tf.clip_by_value(places, 0, column.size - 1)
            # Read first: a gather from the variable is an operator that bundles refuse.
            parts.append(tf.gather(tf.convert_to_tensor(table.value), places))
        return tf.concat(parts, 2)

    def _join(self, x):
        """Return the stacks of frames [B, N * K, F] as steps [B, N, K * F]."""
        width = self.stack * self.features
        return tf.reshape(x, [-1, tf.shape(x)[1] // self.stack, width])

    def _read(self, last, total, count):
        """Return what the classifier reads, [B, W]: the last output, the mean, or both."""
        parts = {"last": last, "mean": total / count}
        return tf.concat([parts[name] for name in self.read.split("+")], 1)

    def _last(self, outputs, lengths):
        """Return the output of each direction after its last step."""
        hidden = self.config.hidden
        last = tf.gather(outputs[:, :, :hidden], lengths - 1, axis=1, batch_dims=1)
        return tf.concat([last, outputs[:, 0, hidden:]], 1)


def _masked(outputs, lengths):
    """Return outputs [B, T, H] with zeros past each length."""
    mask = tf.sequence_mask(lengths, tf.shape(outputs)[1])
    return tf.where(mask[:, :, None], outputs, 0.0)


def check(config: NetworkConfig, task: Task) -> None:
    """Refuse stacks for a network that labels each step.

    Raises:
        ConfigError: names the setting.
    """
    if task == "label" and config.stack > 1:
        raise ConfigError(
            "network.stack: stacks are for sequences of one class; leave it out to label"
            " each step"
        )


def check_prefixes(config: NetworkConfig, task: Task) -> None:
    """Refuse the cost over prefixes for a network whose last output is not its answer.

    Raises:
        ConfigError: names the setting.
    """
    last = config.read == "last" and config.stack == 1 and not config.bidirectional
    if task != "classify" or not last:
        raise ConfigError(
            "training.prefixes: is for forward networks that classify by the last output"
            " (--no-bidirectional --read last --stack 1)"
        )


def cost(logits, targets, lengths, weights, *, class_weights=None, smoothing=0.0):
    """Return the cross entropy, averaged over each sequence's valid steps, then over
    sequences.

    Args:
        logits: [B, C] or [B, T, C].
        targets: [B] or [B, T] class numbers.
        lengths: [B].
        weights: [B], of each sequence in the sum; 1 / B gives the mean.
        class_weights: [C], of a sequence or step by its class.
        smoothing: the part of each target that all classes share.
    """
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if smoothing:
        shared = -tf.reduce_mean(tf.nn.log_softmax(logits), -1)
        entropy = (1 - smoothing) * entropy + smoothing * shared
    if class_weights is not None:
        entropy *= tf.gather(class_weights, targets)
    if entropy.shape.rank == 2:
        mask = tf.sequence_mask(lengths, tf.shape(entropy)[1], entropy.dtype)
        entropy = tf.reduce_sum(entropy * mask, 1) / tf.cast(lengths, entropy.dtype)
    return tf.reduce_sum(entropy * weights)


def count_errors(logits, targets, lengths, rows):
    """Return the number of wrong predictions and of all, sequences or valid steps.

    Args:
        rows: [B] bool, the sequences to count.
    """
    wrong = tf.argmax(logits, -1, tf.int32) != targets
    valid = rows
    if wrong.shape.rank == 2:
        steps = tf.sequence_mask(lengths, tf.shape(wrong)[1])
        valid = rows[:, None] & steps
    wrong, valid = tf.cast(wrong & valid, tf.float32), tf.cast(valid, tf.float32)
    return tf.reduce_sum(wrong), tf.reduce_sum(valid)


def _recurrent(
    config: NetworkConfig, cudnn: bool, mixed: bool, name: str
) -> keras.layers.RNN:
    options = {
        "dtype": "mixed_float16" if mixed else "float32",
        "return_sequences": True,
        "unroll": config.unroll == "static",
        "use_cudnn": "auto" if cudnn else False,
        "name": name,
    }
    if config.cell == "lstm":
        return keras.layers.LSTM(config.hidden, **options)
    return keras.layers.GRU(config.hidden, reset_after=config.reset_after, **options)
