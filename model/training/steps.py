"""The compiled update and evaluation of a network, on one device or several.

On several GPUs each batch is dealt out row by row (MirroredStrategy). A row's
weight in the cost is one over the whole batch, and gradients are added up before
they are clipped, so the number of devices changes no result but for the
dropout that is drawn.
"""

import keras
import numpy as np
import tensorflow as tf

from model.config import Config, TrainingConfig
from model.network.network import Network, cost, mistakes


def strategy() -> tf.distribute.Strategy:
    """All GPUs where there are several; else TensorFlow's own choice."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def optimizer(config: TrainingConfig, updates: int) -> keras.optimizers.Optimizer:
    """The optimizer with its learning rate over `updates` updates."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, updates)
    kinds = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}
    return kinds[config.optimizer](rate)


class Trainer:
    """A network, its optimizer, and the steps over a batch."""

    def __init__(
        self,
        network: Network,
        config: Config,
        *,
        updates: int,
        devices: tf.distribute.Strategy,
    ):
        self.network, self.devices = network, devices
        self.clip_norm = config.training.clip_norm
        self.optimizer = optimizer(config.training, updates)
        self.optimizer.build(network.trainable_variables)
        signature = None  # static: a graph for each length
        dynamic = config.network.unroll == "dynamic"
        # A signature can't say "one tensor for each device".
        if dynamic and devices.num_replicas_in_sync == 1:
            targets = (None,) if network.task == "classify" else (None, None)
            signature = [
                tf.TensorSpec((None, None, network.features), tf.float32),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec(targets, tf.int32),
                tf.TensorSpec((None,), tf.float32),
            ]
        seeded = signature and [*signature, tf.TensorSpec((3,), tf.int32)]
        self._updating = tf.function(
            self._update, input_signature=seeded, reduce_retracing=dynamic
        )
        self._measuring = tf.function(
            self._measure, input_signature=signature, reduce_retracing=dynamic
        )

    def update(self, frames, lengths, targets, *, seed: tuple[int, int, int]):
        """One gradient step; the batch's cost, mistakes and their possible number."""
        batch = (frames, lengths, targets)
        return self._run(self._updating, batch, tf.constant(seed, tf.int32))

    def measure(self, frames, lengths, targets):
        """The same three figures with dropout off and nothing changed."""
        return self._run(self._measuring, (frames, lengths, targets))

    def _run(self, function, batch, *rest):
        size = batch[0].shape[0]
        weights = tf.fill((size,), 1 / size)
        replicas = self.devices.num_replicas_in_sync
        if replicas == 1:
            return [value.numpy() for value in function(*batch, weights, *rest)]
        rows = [_deal(size, replicas, index) for index in range(replicas)]

        def share(context):
            index, real = rows[context.replica_id_in_sync_group]
            values = [tf.gather(value, index) for value in batch]
            return (*values, tf.gather(weights, index) * real)

        shares = self.devices.experimental_distribute_values_from_function(share)
        results = self.devices.run(function, (*shares, *rest))
        total = tf.distribute.ReduceOp.SUM
        return [self.devices.reduce(total, value, None).numpy() for value in results]

    def _update(self, frames, lengths, targets, weights, seed):
        with tf.GradientTape() as tape:
            own = tf.random.experimental.stateless_fold_in(seed[:2], seed[2])
            if self.devices.num_replicas_in_sync > 1:  # other rows, other dropout
                device = tf.distribute.get_replica_context().replica_id_in_sync_group
                own = tf.random.experimental.stateless_fold_in(own, device)
            logits = self.network(frames, lengths, own)
            batch_cost = cost(logits, targets, lengths, weights)
        variables = self.network.trainable_variables
        gradients = tape.gradient(batch_cost, variables)
        gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        # The optimizer adds up over the devices once more.
        replicas = self.devices.num_replicas_in_sync
        gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return batch_cost, *mistakes(logits, targets, lengths, weights > 0)

    def _measure(self, frames, lengths, targets, weights):
        logits = self.network(frames, lengths)
        batch_cost = cost(logits, targets, lengths, weights)
        return batch_cost, *mistakes(logits, targets, lengths, weights > 0)


def _deal(size: int, replicas: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a device, and 1 for each but a stand-in where it would have none."""
    rows = np.arange(index, size, replicas)
    if len(rows):
        return rows, np.ones(len(rows), np.float32)
    return np.zeros(1, np.int64), np.zeros(1, np.float32)
