"""Train on data and write the bundle: `model.train`, and the steps of `unrolled train`.

TensorFlow is imported when a training begins.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from model.bundle import bundle
from model.bundle.folders import TRAINED
from model.cli import arguments, console, libraries, search_steps
from model.cli.arguments import RUNS
from model.config import Config, ConfigError, nested
from model.datasets import readers
from model.datasets.dataset import Dataset, Task
from model.datasets.readers import dataframe
from model.datasets.readers.table_layout import nearest

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame

    from model.evaluation.evaluation import Metrics
    from model.export.promotion import Promotion
    from model.inference.network import Network as InferenceNetwork
    from model.network.network import Network
    from model.training.cross_validation import CrossValidation
    from model.training.runs import Epoch

DATAFRAME = "DataFrame"  # in place of a path, in the settings of a run
Promote = Literal["better", "not-worse", "always", "never"]


class Choices(TypedDict, total=False):
    """The settings of `model.config`, which are the options of `unrolled train`."""

    encoding: str | None
    text: str | None
    characters: bool
    column: str | None
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    time: str | None
    min_count: int
    max_words: int
    buckets: int
    embedding: int
    labels_are_classes: bool
    validation_fraction: float | None
    test_fraction: float | None
    normalise: Literal["features", "whole", "none"]
    cell: Literal["gru", "lstm"]
    layers: int
    hidden: int
    dropout: float
    embedding_dropout: float
    bidirectional: bool
    read: Literal["last", "mean", "last+mean"]
    stack: int
    unroll: Literal["dynamic", "static"]
    reset_after: bool
    optimizer: Literal["adam", "adamw", "rmsprop"]
    weight_decay: float
    learning_rate: float
    schedule: Literal["cosine", "constant"]
    class_weights: Literal["none", "balanced"]
    label_smoothing: float
    warmup: float
    clip_norm: float
    epochs: int
    updates: int | None
    patience: int
    prefixes: bool
    best_by: Literal["error", "cost"]
    batch: int
    warm_start: str | None
    mixed_precision: bool
    folds: int
    repeats: int
    seed: int
    recombine: float
    recombine_words: str | None
    image: tuple[int, int] | None
    shift: float
    rotate: float
    zoom: float
    shear: float
    time_warp: float
    window: float
    magnitude: float
    erase: float
    noise: float
    offset: float


@dataclass(frozen=True)
class TrainingResult:
    """A trained network and its bundle.

    Attributes:
        bundle: the bundle's folder.
        metrics: of each part: "train", "validation" or "cross_validation", "test". In
            percent.
        history: cost and error after each epoch.
        promotion: the comparison with the version that was served; None if there was
            no other version.
    """

    bundle: Path
    metrics: "dict[str, Metrics]" = field(repr=False)
    history: "list[Epoch]" = field(repr=False)
    promotion: "Promotion | None"

    @cached_property
    def network(self) -> "InferenceNetwork":
        """The network, to predict with; see `model.load`."""
        from model.inference.network import load

        return load(self.bundle)


class Interrupted(KeyboardInterrupt):
    """A training that Ctrl-C has stopped.

    Attributes:
        run: the folder of the run, which has the weights so far.
        epoch: the best one so far; None during the cross-validation.
    """

    def __init__(self, run: Path, epoch: int | None):
        reason = "stopped"
        if epoch is not None:
            reason += f"; the best weights so far (epoch {epoch}) are in {run}"
        super().__init__(f"{reason}; the same call with resume=True continues")
        self.run, self.epoch = run, epoch


def train(
    data: "str | os.PathLike[str] | IntoDataFrame",
    *,
    test: "str | os.PathLike[str] | IntoDataFrame | None" = None,
    by: str | None = None,
    label: str | None = None,
    step: str | None = None,
    group: str | None = None,
    ignore: Sequence[str] = (),
    task: Task | None = None,
    name: str | None = None,
    preset: str | None = None,
    output: str | os.PathLike[str] = TRAINED,
    promote: Promote = "better",
    runs: str | os.PathLike[str] = RUNS,
    resume: bool = False,
    int8: bool | None = None,
    progress: bool = True,
    search: float | None = None,
    **choices: Unpack[Choices],
) -> TrainingResult:
    """Train a network and write its bundle, as the command `unrolled train` does.

    Args:
        data: a DataFrame of pandas or polars with a row for each step (or each text, or
            record), the path of a file, or the name of a built-in data set.
        test: another DataFrame or file, the test part. Default: a part of `data`.
        by: column of the sequences' ids. Default: `sequence`.
        label: column of the labels. Default: `label`.
        step: column that orders the rows of a sequence. Default: `step`, if there is one.
        group: column of subjects, machines or documents. The sequences of one are never
            divided over parts.
        ignore: columns that are no features.
        task: predict one class per sequence (classify) or per step (label). Default:
            classify if no label changes within a sequence.
        name: the bundle's name. Default: the file's or preset's, or `model`.
        preset: settings to start from, such as those of `digits`.
        output: folder to write bundles to.
        promote: serve the new version if it is better than the one that is served, if it
            is not provably worse, always, or never.
        runs: folder for checkpoints and logs.
        resume: continue an interrupted run with the same data and settings, or extend
            a complete one with more `epochs` or `updates`.
        int8: add int8 weights. Default: for an LSTM, if they change little.
        progress: print the data, a line for each epoch, and the metrics. If false,
            likely mistakes in the data are Python's warnings.
        search: minutes in which to search for better settings first, as `unrolled
            search` does; `choices` are not searched. With `resume` the search is
            continued; `search=0, resume=True` trains with the best settings so far.
        choices: settings of the network and its training by their names in
            `model.config`, such as `layers=1, hidden=64, epochs=20`.

    Raises:
        ValueError: the data can't be learnt from, or a setting is out of bounds.
        Interrupted: Ctrl-C was pressed during the training.
        search_steps.Interrupted: Ctrl-C was pressed during the search.
    """
    source = _name(data)
    settings = _check(choices) | {
        "task": task,
        "test": None if test is None else _name(test),
        "sequence_column": by,
        "label_column": label,
        "step_column": step,
        "group_column": group,
        "ignore": tuple(ignore) or None,
    }
    if source == DATAFRAME and preset is None:
        name = name or "model"
    config = arguments.build_config(
        source, preset, settings=None, name=name, flags=nested(settings)
    )
    try:
        dataset = arguments.load_dataset(
            config, data if source == DATAFRAME else None, test
        )
    except ConfigError as error:
        raise ConfigError(dataframe.as_arguments(str(error))) from None
    if search is not None:
        config = search_steps.run(
            dataset,
            config,
            source=None if DATAFRAME in (source, settings["test"]) else source,
            fixed=arguments.fixed_settings(
                config, source, preset is not None, nested(settings)
            ),
            minutes=search,
            output=Path(output),
            runs=Path(runs),
            resume=resume,
            int8=int8,
            progress=progress,
        ).config
    return run(
        dataset,
        config,
        output=Path(output),
        promote=promote,
        runs=Path(runs),
        resume=resume and search is None,
        int8=int8,
        progress=progress,
        described=search is not None,
    )


def _name(data: object) -> str:
    """Return how the settings of a run name a file or a DataFrame."""
    if isinstance(data, (str, os.PathLike)):
        return str(data)
    if readers.is_dataframe(data):
        return DATAFRAME
    kind = type(data).__name__
    raise TypeError(f"data is {kind}; expected a DataFrame, a file or a name")


def _check(choices: Choices) -> dict[str, object]:
    """Refuse settings that don't exist, before the data is read."""
    for name in choices:
        if name not in Choices.__annotations__:
            near = nearest(name, list(Choices.__annotations__))
            hint = f"; did you mean {near!r}?" if near else ""
            raise TypeError(f"train() has no argument {name!r}{hint}")
    return dict(choices)


def run(
    dataset: Dataset,
    config: Config,
    *,
    output: Path,
    promote: Promote,
    runs: Path,
    resume: bool,
    int8: bool | None,
    progress: bool,
    described: bool = False,
) -> TrainingResult:
    """Train, and write and promote the bundle; the arguments are those of `train`.

    Args:
        described: the data has been printed, or warned of.

    Raises:
        ValueError: see `train`; or the run that is to be resumed is complete.
        Interrupted: Ctrl-C was pressed during the training.
    """
    with libraries.imports():
        from model.cli.progress import ProgressBars
        from model.export import promotion, quantize
        from model.training import cross_validation, defaults, loop, warm_start
        from model.training.runs import Run

    if int8:
        quantize.check(config.network.cell)
    promotion.check(config.name, output)
    folder = Run(runs / config.name)
    start, seen = warm_start.load(config), []
    if start is not None:
        config = warm_start.settings(config, start.metadata)
        seen = warm_start.warnings(dataset, start)
    if not described:
        console.describe(dataset, seen, progress=progress)
    config = defaults.resolve(config, dataset)
    loop.check(dataset, config)
    crosses = not len(dataset.part("validation"))
    if crosses:
        cross_validation.check(dataset, config)
    if progress:
        console.console.print(defaults.statement(config, dataset), soft_wrap=True)
    bars = ProgressBars() if progress else nullcontext()
    crossed = None
    with bars as callback, folder.opened(config, dataset.digest, resume=resume):
        if crosses:
            try:
                crossed = cross_validation.cross_validate(
                    dataset, config, folder, callback=callback
                )
            except KeyboardInterrupt:
                raise Interrupted(folder.folder, None) from None
        trained = loop.fit(dataset, config, folder, resume=resume, callback=callback)
    if trained.finished_before:
        command = f"unrolled export {folder.folder} --output {output}"
        reason = f"{folder.folder} is complete; write its bundle: {command}"
        raise ConfigError(f"{reason}; or go on with more --epochs or --updates")
    if trained.interrupted:
        best = max(entry.epoch for entry in trained.history if entry.best)
        raise Interrupted(folder.folder, best)
    if trained.warning and progress:
        console.print_warnings([trained.warning])
    elif trained.warning:
        warnings.warn(trained.warning, stacklevel=3)
    return publish(
        trained.network,
        trained.history,
        dataset,
        config,
        cross_validation=crossed,
        run=folder.folder,
        output=output,
        promote=promote,
        int8=int8,
        progress=progress,
    )


def publish(
    network: "Network",
    history: "list[Epoch]",
    dataset: Dataset,
    config: Config,
    *,
    cross_validation: "CrossValidation | None" = None,
    run: Path,
    output: Path,
    promote: Promote,
    int8: bool | None,
    progress: bool,
) -> TrainingResult:
    """Write the bundle of a trained network, and promote it; see `train`.

    Args:
        run: the folder of the run.
    """
    from model.export import promotion, publish
    from model.training.runs import WORST

    folder, metrics = publish.publish(
        network,
        history,
        dataset,
        config,
        output,
        cross_validation=cross_validation,
        int8=int8,
        run=run,
    )
    if progress:
        console.print_published(bundle.read(folder), metrics, run / WORST)
    decision = promotion.decide(folder, dataset, promote)
    if progress:
        console.print_promotion(decision, output)
    return TrainingResult(folder, metrics, history, decision)
