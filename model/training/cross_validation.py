"""Cross-validation: predict every sequence by a network that was trained without it.

The answers say how well a network trained on all sequences would do, and calibrate it.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.config import Config, ConfigError
from model.datasets import splits
from model.datasets.dataset import TRAIN, Dataset
from model.evaluation import evaluation
from model.evaluation.evaluation import Predictions
from model.training import workers
from model.training.fold import Fold
from model.training.loop import Callback
from model.training.runs import Run

FOLDER = "folds"  # in the run's


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The answers out of fold, each by a network that has not seen the sequence.

    Attributes:
        predictions: logits; all sequences for training in order, for each repetition.
        errors: of each fold, in percent.
        held_out: the sequences that each fold leaves out, [N] bool.
    """

    predictions: Predictions
    errors: tuple[float, ...]
    held_out: tuple[np.ndarray, ...]


def cross_validate(
    dataset: Dataset,
    config: Config,
    run: Run | None = None,
    *,
    callback: Callback | None = None,
) -> CrossValidation:
    """Cross-validate on the part "train".

    Folds that are finished in the folder of the run are not trained again.

    Args:
        config: with a value for each setting, see `defaults`.

    Raises:
        ConfigError: see `loop.fit`.
        ValueError: there are fewer sequences, or groups, than folds.
        ChildProcessError: a training process has ended.
    """
    callback = callback or Callback()
    train = training_part(dataset)
    folds = list_folds(train, config)
    logits = _saved(run, len(folds))
    updates, _ = config.training.length(len(train))
    done = [updates if number in logits else 0 for number in range(len(folds))]
    callback.on_cross_validation_begin(len(folds), updates)

    def progress(number: int, count: int) -> None:
        done[number] = count
        callback.on_cross_validation_progress(sum(done))

    missing = {n: fold for n, fold in enumerate(folds) if n not in logits}
    steps = int(len(missing) * updates * np.median(train.lengths))
    with workers.Workers(train, workers.available(len(missing), steps)) as pool:
        for number, answers in pool.train(missing, progress):
            logits[number] = answers.logits
            _save(run, number, answers.logits)
            progress(number, updates)
    result = _join(train, config, folds, logits)
    predicted = result.predictions.scores.argmax(1)
    error = 100 * float((predicted != result.predictions.targets).mean())
    callback.on_cross_validation_end(error, result.errors)
    return result


def restore(dataset: Dataset, config: Config, run: Run) -> CrossValidation | None:
    """Return the cross-validation of a run; None if it isn't complete."""
    train = training_part(dataset)
    folds = list_folds(train, config)
    logits = _saved(run, len(folds))
    return _join(train, config, folds, logits) if len(logits) == len(folds) else None


def training_part(dataset: Dataset) -> Dataset:
    """Return the sequences for training, of which all are in the part "train"."""
    train = dataset.part("train")
    return replace(train, split=np.full(len(train), TRAIN))


def check(dataset: Dataset, config: Config) -> None:
    """Refuse data that can't be cross-validated.

    Raises:
        ConfigError: there are fewer sequences, or groups, than folds.
    """
    try:
        list_folds(training_part(dataset), config)
    except ValueError as error:
        raise ConfigError(
            f"{dataset.name}: too few sequences to validate on ({error})"
        ) from None


def list_folds(train: Dataset, config: Config) -> list[Fold]:
    """Return the folds of all repetitions, each with a seed of its own.

    Args:
        train: the sequences for training.

    Raises:
        ValueError: there are fewer sequences, or groups, than folds.
    """
    training, result = config.training, []
    for repeat in range(training.repeats):
        seed = training.seed + 1_000 * repeat
        numbers = splits.folds(train, training.folds, seed)
        for number in range(training.folds):
            changes = {"training": {"seed": (seed + 1 + number) % 2**31}}
            result.append(Fold(config.update(changes), numbers == number))
    return result


def _saved(run: Run | None, count: int) -> dict[int, np.ndarray]:
    """Return the logits of the folds that are finished in the run's folder."""
    files = {n: run.folder / FOLDER / f"{n}.npy" for n in range(count)} if run else {}
    return {
        number: np.load(file, allow_pickle=False)
        for number, file in files.items()
        if file.exists()
    }


def _save(run: Run | None, number: int, logits: np.ndarray) -> None:
    if run is None:
        return
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    np.save(folder / "new.npy", logits)
    (folder / "new.npy").replace(folder / f"{number}.npy")


def _join(
    train: Dataset, config: Config, folds: list[Fold], logits: dict[int, np.ndarray]
) -> CrossValidation:
    """Put the answers of the folds in the order of the sequences."""
    training = config.training
    steps = train.lengths if train.task == "label" else np.ones(len(train), int)
    classes, errors = len(train.classes), []
    scores = np.zeros((training.repeats, len(train.targets), classes), np.float32)
    for number, fold in enumerate(folds):
        rows = np.repeat(fold.held_out, steps)
        scores[number // training.folds, rows] = logits[number]
        wrong = logits[number].argmax(1) != train.targets[rows]
        errors.append(100 * float(wrong.mean()))
    predictions = Predictions(
        scores.reshape(-1, classes),
        np.tile(train.targets, training.repeats),
        np.tile(np.repeat(train.lengths, steps), training.repeats),
        # The answers for one sequence, of all repetitions, are not independent.
        np.tile(evaluation.answer_groups(train), training.repeats),
        grouped=train.groups is not None,
    )
    held_out = tuple(fold.held_out for fold in folds)
    return CrossValidation(predictions, tuple(errors), held_out)
