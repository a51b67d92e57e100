"""The training loop: epochs, early stopping, checkpoints, resuming.

Every random choice is drawn from (seed, epoch, batch), so that a resumed run ends with
the same weights as an uninterrupted one.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from model.config import Config, ConfigError
from model.datasets.dataset import Dataset
from model.network import network
from model.network.network import Network
from model.training import augmentation, pipeline, steps
from model.training.runs import Epoch, Run


class Callback:
    """Events of a training run, named as in Keras; override those of interest."""

    def on_epoch_begin(self, epoch: int, batches: int) -> None:
        """Epoch number `epoch` begins; it has `batches` batches."""

    def on_batch_end(self, cost: float, error: float) -> None:
        """A batch is done. Cost and error (percent) are those of the epoch so far."""

    def on_epoch_end(self, epoch: Epoch) -> None:
        """An epoch is done and saved."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run: the network with its best weights, and the history."""

    network: Network
    history: list[Epoch]
    resumed: int  # epochs of the history that an earlier call had done
    interrupted: bool

    @property
    def finished_before(self) -> bool:
        """True if the run was complete before this call."""
        return not self.interrupted and 0 < self.resumed == len(self.history)


def build(dataset: Dataset, config: Config) -> Network:
    """Create a network for `dataset` with weights drawn from the seed."""
    keras.utils.set_random_seed(config.training.seed)
    mean, scale = pipeline.normalization(dataset.part("train"), config.data.normalise)
    if not (scale > np.finfo(np.float32).tiny).all():
        raise ConfigError(f"{dataset.name}: numbers too large to be scaled in float32")
    return Network(
        config.network,
        task=dataset.task,
        features=len(dataset.features),
        classes=len(dataset.classes),
        mean=mean,
        scale=scale,
    )


def fit(
    dataset: Dataset,
    config: Config,
    run: Run,
    *,
    resume: bool = False,
    callback: Callback | None = None,
) -> Trained:
    """Train on the part "train", and choose the best epoch by the part "validation".

    Ctrl-C stops the run; the best weights so far are saved and returned.

    Raises:
        ConfigError: a part is empty, the augmentation doesn't fit the data, the folder
            holds another run, or another training is writing to it.
        KeyboardInterrupt: no epoch was complete yet.
    """
    for part in ("train", "validation"):
        if not len(dataset.part(part)):
            raise ConfigError(f"{dataset.name}: too few sequences for a {part} part")
    network.check(config.network, dataset.task)
    augmentation.check(config.augmentation, dataset)
    if resume:
        run.config()  # raises if there is none
    with run.locked():
        return _fit(dataset, config, run, resume, callback or Callback())


def _fit(
    dataset: Dataset, config: Config, run: Run, resume: bool, callback: Callback
) -> Trained:
    if resume:
        run.resume(config, dataset.digest)
    else:
        run.begin(config, dataset.digest)
    loop = _Loop(dataset, config, run, callback)
    if resume:
        loop.restore()
    resumed, interrupted = len(loop.history), False
    try:
        while not loop.is_finished():
            loop.run_epoch()
    except KeyboardInterrupt:
        if not loop.history:
            raise
        interrupted = True
    run.restore_best(loop.network)
    return Trained(loop.network, loop.history, resumed, interrupted)


class _Loop:
    """The state of one run: network, optimizer, batches, checkpoints, history."""

    def __init__(self, dataset: Dataset, config: Config, run: Run, callback: Callback):
        self.config, self.run, self.callback = config.training, run, callback
        static = config.network.unroll == "static"
        devices = steps.strategy()
        with devices.scope():
            self.network = build(dataset, config)
            self.train = pipeline.Batches(
                dataset.part("train"),
                self.config.batch,
                static=static,
                augment=config.augmentation,
            )
            self.validation = pipeline.Batches(
                dataset.part("validation"), 4 * self.config.batch, static=static
            )
            self.trainer = steps.Trainer(
                self.network,
                config,
                updates=len(self.train) * self.config.epochs,
                devices=devices,
                class_weights=steps.class_weights(self.config, self.train.dataset),
            )
        self.latest = run.latest(self.network, self.trainer.optimizer)
        self.best = run.best(self.network)
        self.writer = tf.summary.create_file_writer(str(run.folder / "logs"))
        self.history: list[Epoch] = []

    def restore(self) -> None:
        """Restore the state after the last complete epoch in the run's folder."""
        path = self.latest.latest_checkpoint
        if path is None:
            return
        self.latest.checkpoint.restore(path).assert_existing_objects_matched()
        done = int(path.rpartition("-")[2])
        self.history = self.run.history()[:done]

    def is_finished(self) -> bool:
        """True after the last epoch, or when the validation error stopped improving."""
        best = [entry.epoch for entry in self.history if entry.best]
        done = len(self.history)
        since_best = done - best[-1] if best else 0
        return done >= self.config.epochs or since_best >= self.config.patience

    def run_epoch(self) -> None:
        """Train on all batches once, evaluate on the validation part, and save."""
        number = len(self.history) + 1
        rate = float(self.trainer.optimizer.learning_rate)
        cost, error = self._train(number)
        validation_cost, validation_error = self.measure(self.validation)
        score = (validation_error, validation_cost)
        before = [(e.validation_error, e.validation_cost) for e in self.history]
        entry = Epoch(
            number,
            cost,
            error,
            validation_cost,
            validation_error,
            rate,
            best=all(score < other for other in before),
        )
        if entry.best:
            self.best.save(number)
        self.run.write_history([*self.history, entry])
        self.latest.save(number)
        self.history.append(entry)
        with self.writer.as_default(step=number):
            for name in ("cost", "error", "validation_cost", "validation_error"):
                tf.summary.scalar(name, getattr(entry, name))
            tf.summary.scalar("learning_rate", rate)
        self.writer.flush()
        self.callback.on_epoch_end(entry)

    def _train(self, number: int) -> tuple[float, float]:
        seed = self.config.seed
        self.callback.on_epoch_begin(number, len(self.train))
        average = _RunningAverage()
        batches = self.train.epoch((seed, number))
        for index, (_, *batch) in enumerate(batches):
            results = self.trainer.train_step(*batch, seed=(seed, number, index))
            average.add(results, batch)
            self.callback.on_batch_end(*average.values())
        return average.values()

    def measure(self, batches: pipeline.Batches) -> tuple[float, float]:
        """Return cost and error (percent) of a part."""
        average = _RunningAverage()
        for _, *batch in batches.epoch():
            average.add(self.trainer.eval_step(*batch), batch)
        return average.values()


class _RunningAverage:
    """Average cost of a sequence and error in percent, over batches of any size."""

    def __init__(self) -> None:
        self.cost = self.sequences = self.wrong = self.count = 0.0

    def add(self, results, batch) -> None:
        cost, wrong, count = map(float, results)
        size = batch[0].shape[0]
        self.cost += cost * size
        self.sequences += size
        self.wrong += wrong
        self.count += count

    def values(self) -> tuple[float, float]:
        return self.cost / self.sequences, 100 * self.wrong / self.count
