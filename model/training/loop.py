"""The training loop: epochs, early stopping, checkpoints, resuming.

Every random choice is drawn from (seed, epoch, batch), so that a resumed run ends with
the same weights as an uninterrupted one.
"""

import dataclasses
import itertools
import time
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from model.config import Config, ConfigError
from model.datasets import recombination
from model.datasets.dataset import Dataset
from model.datasets.recombination import Recombination
from model.network import network
from model.network.network import Network
from model.training import augmentation, checkpoints, pipeline, steps, warm_start
from model.training.checkpoints import Checkpoints
from model.training.runs import Epoch, Run

FETCH_SECONDS = 0.1  # between two looks at the results of an epoch's batches
COLLAPSED, MARGIN = 2.0, 0.1  # a cost above the lowest one by so much is a collapse


class Callback:
    """Events of a training run, named as in Keras; override those of interest."""

    def on_cross_validation_begin(self, trainings: int, updates: int) -> None:
        """So many networks are trained without one fold each, with `updates` updates."""

    def on_cross_validation_progress(self, updates: int) -> None:
        """So many updates are done, of all those networks."""

    def on_cross_validation_end(self, error: float, folds: tuple[float, ...]) -> None:
        """All folds have been predicted: the error of all answers, and that of each fold,
        in percent."""

    def on_train_begin(self, epochs: int) -> None:
        """The training begins, or continues. It has at most so many epochs in all."""

    def on_epoch_begin(self, epoch: int, batches: int) -> None:
        """Epoch number `epoch` begins; it has `batches` batches."""

    def on_batch_end(self, cost: float, error: float) -> None:
        """A batch is done. Cost and error (percent) are those of the epoch so far, some
        tenths of a second ago; after its last batch, those of the epoch."""

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
    def warning(self) -> str | None:
        """Names a cost that rose again far above its lowest value; None if none did."""
        part = "training" if self.history[-1].validation_cost is None else "validation"
        costs = [
            entry.cost if entry.validation_cost is None else entry.validation_cost
            for entry in self.history
        ]
        if not np.isfinite(costs).any():
            return f"the {part} cost was not finite: a lower --learning-rate may help"
        lowest, last = int(np.nanargmin(costs)), len(costs) - 1
        if costs[last] <= COLLAPSED * costs[lowest] + MARGIN:
            return None
        best = max(entry.epoch for entry in self.history if entry.best)
        return (
            f"the {part} cost rose from {costs[lowest]:.4f} (epoch {lowest + 1}) to"
            f" {costs[last]:.4f} (epoch {last + 1}). The weights of epoch {best} are used."
            " A lower --learning-rate, or more --dropout or --noise, may help."
        )

    @property
    def finished_before(self) -> bool:
        """True if the run was complete before this call."""
        return not self.interrupted and 0 < self.resumed == len(self.history)


def build(dataset: Dataset, config: Config) -> Network:
    """Create a network for `dataset` with weights drawn from the seed."""
    keras.utils.set_random_seed(config.training.seed)
    columns = dataset.columns
    normalise = "none" if dataset.vocabulary else config.data.normalise
    mean, scale = pipeline.normalization(dataset.part("train"), normalise)
    if columns:
        numbers = np.array([column.size == 0 for column in columns])
        mean, scale = np.where(numbers, mean, 0), np.where(numbers, scale, 1)
    if not (scale > np.finfo(np.float32).tiny).all():
        raise ConfigError(f"{dataset.name}: numbers too large to be scaled in float32")
    return Network(
        config.network,
        task=dataset.task,
        features=len(dataset.features),
        classes=len(dataset.classes),
        mean=mean,
        scale=scale,
        columns=columns,
        mixed=config.training.mixed_precision,
    )


def check(dataset: Dataset, config: Config) -> None:
    """Refuse settings that don't fit the data.

    Raises:
        ConfigError: see `fit`.
    """
    if not len(dataset.part("train")):
        raise ConfigError(f"{dataset.name}: too few sequences for a train part")
    network.check(config.network, dataset.task)
    if config.training.prefixes:
        network.check_prefixes(config.network, dataset.task)
    augmentation.check(config.augmentation, dataset)
    _recombination(dataset, config)
    steps.check_precision(config.training)


def _recombination(dataset: Dataset, config: Config) -> Recombination | None:
    settings = config.augmentation
    return recombination.build(dataset, settings.recombine, settings.recombine_words)


def fit(
    dataset: Dataset,
    config: Config,
    run: Run | None = None,
    *,
    resume: bool = False,
    callback: Callback | None = None,
) -> Trained:
    """Train on the part "train", and choose the best epoch by the part "validation".

    Without a validation part the best epoch is the last one whose cost is not far above
    the lowest. Ctrl-C stops the run; the best weights so far are saved and returned.

    Args:
        run: the folder for checkpoints and logs; None writes nothing.
        resume: continue from the folder's last checkpoint.

    Raises:
        ConfigError: there is nothing to train on, the augmentation doesn't fit the data,
            the folder holds another run, or another training is writing to it.
        KeyboardInterrupt: no epoch was complete yet.
    """
    check(dataset, config)
    callback = callback or Callback()
    if run is None:
        return _run(_Loop(dataset, config, None, callback))
    with run.opened(config, dataset.digest, resume=resume):
        loop = _Loop(dataset, config, run, callback)
        if resume:
            loop.restore()
        return _run(loop)


def _run(loop: "_Loop") -> Trained:
    resumed, interrupted = len(loop.history), False
    if not loop.history:
        loop.start()
    loop.callback.on_train_begin(loop.epochs)
    try:
        while not loop.is_finished():
            loop.run_epoch()
    except KeyboardInterrupt:
        if not loop.history:
            raise
        interrupted = True
    loop.finish()
    return Trained(loop.network.in_float32(), loop.history, resumed, interrupted)


class _Loop:
    """The state of one run: network, optimizer, batches, checkpoints, history."""

    def __init__(
        self, dataset: Dataset, config: Config, run: Run | None, callback: Callback
    ):
        self.config, self.run, self.callback = config.training, run, callback
        self.dataset, self.settings = dataset, config
        static = config.network.unroll == "static"
        devices = steps.strategy()
        validation = dataset.part("validation")
        with devices.scope():
            self.network = build(dataset, config)
            self.train = pipeline.Batches(
                dataset.part("train"),
                self.config.batch,
                static=static,
                augment=config.augmentation,
                recombine=_recombination(dataset, config),
            )
            self.validation = None
            if len(validation):
                self.validation = pipeline.Batches(
                    validation, 4 * self.config.batch, static=static
                )
            self.updates, self.epochs = self.config.length(len(self.train.dataset))
            self.trainer = steps.Trainer(
                self.network,
                config,
                updates=self.updates,
                devices=devices,
                class_weights=steps.class_weights(self.config, self.train.dataset),
            )
        self.checkpoints: Checkpoints | None = None
        if run:
            self.checkpoints = Checkpoints(run, self.network, self.trainer.optimizer)
        self.history: list[Epoch] = []
        self.best: list[np.ndarray] = []  # the network's weights of the best epoch

    def start(self) -> None:
        """Begin with the weights of a bundle, if the settings name one."""
        bundle = warm_start.load(self.settings)
        if bundle is not None:
            warm_start.apply(self.network, self.dataset, bundle)

    def restore(self) -> None:
        """Restore the state after the last saved epoch in the run's folder."""
        if self.checkpoints:
            self.history, self.best = self.checkpoints.restore()

    def is_finished(self) -> bool:
        """True after the last epoch, or when validation stopped improving."""
        best = [entry.epoch for entry in self.history if entry.best]
        done = len(self.history)
        since_best = done - best[-1] if best else 0
        if self.validation is None:
            stopped = done > 0 and not np.isfinite(self.history[-1].cost)
        else:
            stopped = since_best >= self.config.patience
        return done >= self.epochs or stopped

    def run_epoch(self) -> None:
        """Train on all batches once, evaluate on the validation part, and save."""
        number = len(self.history) + 1
        rate = float(self.trainer.optimizer.learning_rate)
        cost, error = self._train(number)
        valid_cost = valid_error = None
        if self.validation:
            valid_cost, valid_error = self.measure(self.validation)
        entry = Epoch(number, cost, error, valid_cost, valid_error, rate, best=True)
        entry = dataclasses.replace(entry, best=self._is_best(entry))
        if entry.best:
            self.best = checkpoints.values(self.network.variables)
        self.history.append(entry)
        if self.checkpoints:
            self.checkpoints.add(self.history, self.best)
        self.callback.on_epoch_end(entry)

    def finish(self) -> None:
        """Save the last complete epoch, and load the weights of the best one."""
        if self.checkpoints:
            self.checkpoints.save()
        checkpoints.assign(self.network.variables, self.best)

    def _is_best(self, entry: Epoch) -> bool:
        if entry.validation_cost is None:
            lowest = min((other.cost for other in self.history), default=np.inf)
            return not self.history or entry.cost <= COLLAPSED * lowest + MARGIN

        def score(epoch: Epoch):
            values = (epoch.validation_error, epoch.validation_cost)
            return values if self.config.best_by == "error" else values[::-1]

        return all(score(entry) < score(other) for other in self.history)

    def _train(self, number: int) -> tuple[float, float]:
        seed = self.config.seed
        count = min(len(self.train), self.updates - (number - 1) * len(self.train))
        self.callback.on_epoch_begin(number, count)
        average, fetched = _RunningAverage(), -np.inf
        batches = itertools.islice(self.train.epoch((seed, number)), count)
        for index, (_, *batch) in enumerate(batches):
            results = self.trainer.train_step(*batch, seed=(seed, number, index))
            average.add(results, batch)
            now = time.monotonic()
            if now - fetched > FETCH_SECONDS or index + 1 == count:
                average.fetch()
                fetched = now
            self.callback.on_batch_end(*average.values())
        return average.values()

    def measure(self, batches: pipeline.Batches) -> tuple[float, float]:
        """Return cost and error (percent) of a part."""
        average = _RunningAverage()
        for _, *batch in batches.epoch():
            average.add(self.trainer.eval_step(*batch), batch)
        average.fetch()
        return average.values()


class _RunningAverage:
    """Average cost of a sequence and error in percent, over batches of any size.

    To fetch results from a GPU waits for all that it has to do, so they are fetched
    together, and the GPU always has the next batch.
    """

    def __init__(self) -> None:
        self.cost = self.sequences = self.wrong = self.count = 0.0
        self.waiting: list[tuple[tf.Tensor, int]] = []

    def add(self, results, batch) -> None:
        self.waiting.append((results, batch[0].shape[0]))

    def fetch(self) -> None:
        for results, size in self.waiting:
            cost, wrong, count = results.numpy().tolist()
            self.cost += cost * size
            self.sequences += size
            self.wrong += wrong
            self.count += count
        self.waiting.clear()

    def values(self) -> tuple[float, float]:
        """Return the averages of the batches that were fetched."""
        return self.cost / self.sequences, 100 * self.wrong / self.count
