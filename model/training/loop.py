"""Find the weights: epochs, early stopping, checkpoints, resuming.

Every random choice is drawn from (seed, epoch, batch), so a run that was cut off
and resumed ends with the weights that it would have had.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from model.config import Config, ConfigError
from model.datasets.dataset import Dataset
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
    """The network with its best weights, and how it came to them."""

    network: Network
    history: list[Epoch]
    resumed: int  # epochs of the history that were done before
    interrupted: bool

    @property
    def finished_before(self) -> bool:
        """There was nothing left to train."""
        return not self.interrupted and 0 < self.resumed == len(self.history)


def build(dataset: Dataset, config: Config) -> Network:
    """A fresh network for `dataset`, its weights fixed by the seed."""
    keras.utils.set_random_seed(config.training.seed)
    mean, scale = pipeline.statistics(dataset.part("train"), config.data.normalise)
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
    """Train on the part "train", choose the epoch by the part "validation".

    Ctrl-C ends the run early; the best weights so far are kept and returned.

    Raises:
        ConfigError: an empty part, an augmentation that doesn't fit the data, a folder
            to resume from that holds another run, or one where another is at work.
        KeyboardInterrupt: before the first epoch was done.
    """
    for part in ("train", "validation"):
        if not len(dataset.part(part)):
            raise ConfigError(f"{dataset.name}: too few sequences for a {part} part")
    augmentation.check(config.augmentation, dataset)
    if resume:
        run.config()  # there is one
    with run.locked():
        return _fit(dataset, config, run, resume, callback or Callback())


def _fit(
    dataset: Dataset, config: Config, run: Run, resume: bool, callback: Callback
) -> Trained:
    if resume:
        run.resume(config, dataset.digest)
    else:
        run.begin(config, dataset.digest)
    epochs = _Epochs(dataset, config, run, callback)
    if resume:
        epochs.restore()
    resumed, interrupted = len(epochs.history), False
    try:
        while not epochs.over():
            epochs.next()
    except KeyboardInterrupt:
        if not epochs.history:
            raise
        interrupted = True
    run.restore_best(epochs.network)
    return Trained(epochs.network, epochs.history, resumed, interrupted)


class _Epochs:
    """The epochs of one run, in order."""

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
                scale=self.network.scale.numpy(),
            )
            self.validation = pipeline.Batches(
                dataset.part("validation"), 4 * self.config.batch, static=static
            )
            self.trainer = steps.Trainer(
                self.network,
                config,
                updates=len(self.train) * self.config.epochs,
                devices=devices,
            )
        self.latest = run.latest(self.network, self.trainer.optimizer)
        self.best = run.best(self.network)
        self.writer = tf.summary.create_file_writer(str(run.folder / "logs"))
        self.history: list[Epoch] = []

    def restore(self) -> None:
        """Go on after the last whole epoch of the run's folder."""
        path = self.latest.latest_checkpoint
        if path is None:
            return
        self.latest.checkpoint.restore(path).assert_existing_objects_matched()
        done = int(path.rpartition("-")[2])
        self.history = self.run.history()[:done]

    def over(self) -> bool:
        """All epochs are done, or patience with the validation error is."""
        best = [entry.epoch for entry in self.history if entry.best]
        done = len(self.history)
        waited = done - best[-1] if best else 0
        return done >= self.config.epochs or waited >= self.config.patience

    def next(self) -> None:
        """One pass over the training part, measured on the validation part."""
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
        average = _Average()
        batches = self.train.epoch((seed, number))
        for index, (_, *batch) in enumerate(batches):
            results = self.trainer.update(*batch, seed=(seed, number, index))
            average.add(results, batch)
            self.callback.on_batch_end(*average.figures())
        return average.figures()

    def measure(self, batches: pipeline.Batches) -> tuple[float, float]:
        """Cost and error (percent) of a part."""
        average = _Average()
        for _, *batch in batches.epoch():
            average.add(self.trainer.measure(*batch), batch)
        return average.figures()


class _Average:
    """Cost per sequence and error in percent, over batches of any size."""

    def __init__(self) -> None:
        self.cost = self.sequences = self.wrong = self.judged = 0.0

    def add(self, results, batch) -> None:
        cost, wrong, judged = map(float, results)
        size = batch[0].shape[0]
        self.cost += cost * size
        self.sequences += size
        self.wrong += wrong
        self.judged += judged

    def figures(self) -> tuple[float, float]:
        return self.cost / self.sequences, 100 * self.wrong / self.judged
