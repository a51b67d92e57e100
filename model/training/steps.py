"""The compiled training and evaluation steps, on one device or several.

On several GPUs the rows of a batch are distributed (MirroredStrategy). Each row counts
in the cost as one over the whole batch, and gradients are summed before they are
clipped. So the number of devices changes nothing but the random dropout.
"""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from model.config import Config, ConfigError, TrainingConfig
from model.datasets.dataset import Dataset
from model.network.network import Network, cost, count_errors


def strategy() -> tf.distribute.Strategy:
    """Return a strategy for all GPUs if there are several, else TensorFlow's default."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def check_precision(config: TrainingConfig) -> None:
    """Refuse mixed precision where nothing gets faster by it.

    Raises:
        ConfigError: there is no GPU, or there are several.
    """
    count = len(tf.config.list_physical_devices("GPU"))
    if config.mixed_precision and count != 1:
        reason = "there is none" if not count else "choose one: CUDA_VISIBLE_DEVICES=0"
        raise ConfigError(f"training.mixed_precision: needs one GPU; {reason}")


def scorer(network: Network, *, prefixes: bool = False) -> Callable[..., np.ndarray]:
    """Return a compiled function of frames [B, T, F] and lengths [B]: the logits.

    Args:
        prefixes: after each step; see `Network.call`.
    """
    signature = None
    if network.config.unroll == "dynamic":
        frames = tf.TensorSpec((None, None, network.features), tf.float32)
        signature = [frames, tf.TensorSpec((None,), tf.int32)]

    # TensorFlow counts the graphs of a function by its code, and would warn after the
    # fifth network. It counts those of a partial object by the object.
    logits = functools.partial(_logits, network, prefixes)
    function = tf.function(logits, input_signature=signature, autograph=False)
    return lambda *batch: function(*batch).numpy()


def _logits(
    network: Network, prefixes: bool, frames: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    return network(frames, lengths, prefixes=prefixes)


def optimizer(config: TrainingConfig, updates: int) -> keras.optimizers.Optimizer:
    """Create the optimizer with its learning rate schedule."""
    rate, warmup = config.learning_rate, round(config.warmup * updates)
    if config.schedule == "cosine" or warmup:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else rate,
            max(1, updates - warmup),
            alpha=0.0 if config.schedule == "cosine" else 1.0,
            warmup_target=rate if warmup else None,
            warmup_steps=warmup,
        )
    match config.optimizer:
        case "adam":
            return keras.optimizers.Adam(rate)
        case "adamw":
            return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
        case "rmsprop":
            return keras.optimizers.RMSprop(rate)


def class_weights(config: TrainingConfig, dataset: Dataset) -> np.ndarray | None:
    """Return the weight [C] of each class in the cost; None if all count alike.

    Balanced, all classes of the training part have the same total. The average of its
    sequences, or steps, is 1, so that a network that guesses has the same cost.
    """
    if config.class_weights == "none":
        return None
    counts = np.bincount(dataset.targets, minlength=len(dataset.classes))
    balanced = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, balanced, 1).astype(np.float32)


class Trainer:
    """A network, its optimizer, and compiled steps over a batch."""

    def __init__(
        self,
        network: Network,
        config: Config,
        *,
        updates: int,
        devices: tf.distribute.Strategy,
        class_weights: np.ndarray | None = None,
    ):
        self.network, self.devices = network, devices
        self.class_weights = class_weights
        self.smoothing = config.training.label_smoothing
        self.clip_norm = config.training.clip_norm
        self.mixed = config.training.mixed_precision
        self.prefixes = config.training.prefixes
        self.optimizer = optimizer(config.training, updates)
        if self.mixed:
            self.optimizer.global_clipnorm = self.clip_norm
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(network.trainable_variables)
        signature = None  # static unrolling: a graph for each length
        dynamic = config.network.unroll == "dynamic"
        # A signature can't express one tensor for each device.
        if dynamic and devices.num_replicas_in_sync == 1:
            targets = (None,) if network.task == "classify" else (None, None)
            signature = [
                tf.TensorSpec((None, None, network.features), tf.float32),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec(targets, tf.int32),
                tf.TensorSpec((None,), tf.float32),
            ]
        seeded = signature and [*signature, tf.TensorSpec((3,), tf.int32)]
        # AutoGraph finds nothing to do here, and takes seconds.
        options = {"reduce_retracing": dynamic, "autograph": False}
        self._train = tf.function(self._train_step, input_signature=seeded, **options)
        self._eval = tf.function(self._eval_step, input_signature=signature, **options)

    def train_step(self, frames, lengths, targets, *, seed: tuple[int, int, int]):
        """Update the weights once; return cost, wrong predictions and their total, [3].

        The result is a tensor, for which the device may still have to compute.
        """
        batch = (frames, lengths, targets)
        return self._run(self._train, batch, tf.constant(seed, tf.int32))

    def eval_step(self, frames, lengths, targets):
        """Return the same three numbers without dropout and without an update."""
        return self._run(self._eval, (frames, lengths, targets))

    def _run(self, function, batch, *rest):
        size = batch[0].shape[0]
        weights = tf.fill((size,), 1 / size)
        replicas = self.devices.num_replicas_in_sync
        if replicas == 1:
            return function(*batch, weights, *rest)
        rows = [_split_rows(size, replicas, index) for index in range(replicas)]

        def share(context):
            index, real = rows[context.replica_id_in_sync_group]
            values = [tf.gather(value, index) for value in batch]
            return (*values, tf.gather(weights, index) * real)

        shares = self.devices.experimental_distribute_values_from_function(share)
        results = self.devices.run(function, (*shares, *rest))
        return self.devices.reduce(tf.distribute.ReduceOp.SUM, results, None)

    def _train_step(self, frames, lengths, targets, weights, seed):
        with tf.GradientTape() as tape:
            seed = tf.random.experimental.stateless_fold_in(seed[:2], seed[2])
            if self.devices.num_replicas_in_sync > 1:  # other rows, other dropout
                device = tf.distribute.get_replica_context().replica_id_in_sync_group
                seed = tf.random.experimental.stateless_fold_in(seed, device)
            logits = self.network(frames, lengths, seed, prefixes=self.prefixes)
            step_targets = targets
            if self.prefixes:  # the same class after each step
                step_targets = tf.broadcast_to(targets[:, None], tf.shape(logits)[:2])
            batch_cost = cost(
                *(logits, step_targets, lengths, weights),
                class_weights=self.class_weights,
                smoothing=self.smoothing,
            )
            scaled = self.optimizer.scale_loss(batch_cost)  # for float16 alone
            if self.prefixes:
                logits = tf.gather(logits, lengths - 1, axis=1, batch_dims=1)
        variables = self.network.trainable_variables
        # Of an embedding it has rows only; the sums and the clipping need all.
        gradients = map(tf.convert_to_tensor, tape.gradient(scaled, variables))
        gradients = tf.distribute.get_replica_context().all_reduce(
            "SUM", list(gradients)
        )
        if not self.mixed:  # else the optimizer clips, after it has undone the scale
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        # The optimizer sums over the devices once more.
        replicas = self.devices.num_replicas_in_sync
        gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.stack(
            [batch_cost, *count_errors(logits, targets, lengths, weights > 0)]
        )

    def _eval_step(self, frames, lengths, targets, weights):
        logits = self.network(frames, lengths)
        batch_cost = cost(
            logits, targets, lengths, weights, class_weights=self.class_weights
        )
        return tf.stack(
            [batch_cost, *count_errors(logits, targets, lengths, weights > 0)]
        )


def _split_rows(size: int, replicas: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a device, and 1 for each; row 0 with 0 if it has none."""
    rows = np.arange(index, size, replicas)
    if len(rows):
        return rows, np.ones(len(rows), np.float32)
    return np.zeros(1, np.int64), np.zeros(1, np.float32)
