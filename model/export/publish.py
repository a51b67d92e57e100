"""Publish a trained network: calibrate, evaluate, describe, and export it as a bundle."""

import datetime
import importlib.metadata
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from model.bundle import bundle, vocabulary
from model.bundle.metadata import (
    Frames,
    Ids,
    Intervals,
    Metadata,
    Normalisation,
    PartMetrics,
    Records,
    TextRecord,
    TrainingRecord,
    shown_part,
)
from model.config import Config
from model.datasets import splits
from model.datasets.dataset import PARTS, Dataset
from model.datasets.readers import Columns
from model.evaluation import baselines, calibration, evaluation, membership, text
from model.evaluation.evaluation import Metrics, Predictions
from model.export import export, quantize
from model.network.network import Network
from model.report import report, worst
from model.training import steps
from model.training.cross_validation import CrossValidation
from model.training.runs import Epoch

CROSS_VALIDATION = "cross_validation"  # beside the parts of the data, in metrics
LIBRARIES = ("tensorflow", "keras", "numpy", "onnx", "onnxruntime")


def publish(
    network: Network,
    history: list[Epoch],
    dataset: Dataset,
    config: Config,
    root: Path,
    *,
    cross_validation: CrossValidation | None = None,
    int8: bool | None = None,
    run: Path | None = None,
) -> tuple[Path, dict[str, Metrics]]:
    """Calibrate, evaluate each part, and write the next version.

    The temperature is fitted on the validation part, or without one on the answers of
    the cross-validation.

    Args:
        cross_validation: of the same data and settings; without a validation part.
        int8: add a network with int8 weights; None: to an LSTM, if they change little.
        run: folder that the page of the worst answers is written to.

    Returns:
        the bundle's folder, and the metrics of each part.

    Raises:
        ExportError: an exported format computes other probabilities than the network.
        QuantizationError: int8 weights are asked for, and change the results too much.
    """
    parts = {name: dataset.part(name) for name in PARTS}
    scorer = steps.scorer(network)
    predictions = {
        name: evaluation.predict(part, scorer)
        for name, part in parts.items()
        if len(part)
    }
    if cross_validation is not None:
        predictions = {
            "train": predictions["train"],
            CROSS_VALIDATION: cross_validation.predictions,
            **predictions,
        }
    unseen = predictions.get("validation", predictions.get(CROSS_VALIDATION))
    unfinished = _prefixes(network, parts, config)
    unseen = unfinished.get("validation", unseen)
    temperature = 1.0
    if unseen is not None:
        temperature = calibration.fit_temperature(unseen.scores, unseen.targets)
    network.temperature.assign(temperature)
    before = {name: _metrics(p, 1.0, dataset) for name, p in predictions.items()}
    after = {name: _metrics(p, temperature, dataset) for name, p in predictions.items()}
    held_out = () if cross_validation is None else cross_validation.held_out
    for name, beside in baselines.evaluate(dataset, predictions, held_out).items():
        after[name] = replace(after[name], baselines=beside)

    text_record = None
    if dataset.columns:
        text_record = TextRecord(
            parts=text.parts(dataset, predictions),
            prefixes={
                name: text.prefixes(
                    parts[name], calibration.softmax(answers.scores / temperature)
                )
                for name, answers in unfinished.items()
            },
        )

    def describe(version: str) -> Metadata:
        metadata = _metadata(network, history, dataset, config, before, after, version)
        training = metadata.training.model_copy(update={"text": text_record})
        return metadata.model_copy(update={"training": training})

    def write(folder: Path, metadata: Metadata) -> None:
        encoding = dataset.vocabulary or dataset.schema
        if encoding is not None:
            (folder / vocabulary.FILE).write_bytes(encoding.to_json() + b"\n")
        membership.save(folder / bundle.SEQUENCES, dataset)
        results = report.Report(history, after, before)
        report.write(folder / bundle.REPORT, metadata, results)
        name = shown_part(after)
        if run is not None and name in parts:
            worst.write(run, metadata, name, parts[name], predictions[name])

    # Never the test part: nothing of it may be in a bundle.
    part = "validation" if len(parts["validation"]) else "train"
    folder = export.export_bundle(
        network,
        parts[part],
        root,
        describe=describe,
        report=write,
        seed=config.training.seed,
        int8=_plan(network, parts, int8),
    )
    return folder, after


def _prefixes(
    network: Network, parts: dict[str, Dataset], config: Config
) -> dict[str, Predictions]:
    """Return the answers after each step of the sequences, where the network was trained
    for them."""
    if not config.training.prefixes:
        return {}
    scorer = steps.scorer(network, prefixes=True)
    return {
        name: evaluation.predict(
            replace(part, task="label", targets=np.repeat(part.targets, part.lengths)),
            scorer,
        )
        for name, part in parts.items()
        if len(part) and name != "train"
    }


def _plan(
    network: Network, parts: dict[str, Dataset], int8: bool | None
) -> quantize.Plan | None:
    """Return the data for an int8 network; None without one."""
    if int8 is False or (int8 is None and network.config.cell != "lstm"):
        return None
    compared = {
        name: parts[name] for name in ("validation", "test") if len(parts[name])
    }
    return quantize.Plan(
        parts["train"], compared or {"train": parts["train"]}, required=bool(int8)
    )


def _metrics(predictions: Predictions, temperature: float, dataset: Dataset) -> Metrics:
    probabilities = calibration.softmax(predictions.scores / temperature)
    calibrated = replace(predictions, scores=probabilities)
    return evaluation.compute_metrics(calibrated, dataset.classes)


def _metadata(
    network: Network,
    history: list[Epoch],
    dataset: Dataset,
    config: Config,
    before: dict[str, Metrics],
    after: dict[str, Metrics],
    version: str,
) -> Metadata:
    part = shown_part(before)
    settings = network.config
    return Metadata(
        name=config.name,
        version=version,
        task=dataset.task,
        input=input_of(dataset),
        classes=dataset.classes,
        cell=settings.cell,
        layers=settings.layers,
        hidden=settings.hidden,
        bidirectional=settings.bidirectional,
        read=network.read,
        stack=network.stack,
        reset_after=settings.reset_after,
        dropout=settings.dropout,
        state_size=network.state_size,
        normalisation=Normalisation(
            mean=tuple(network.mean.numpy().tolist()),
            scale=tuple(network.scale.numpy().tolist()),
        ),
        temperature=float(np.float32(network.temperature.numpy())),
        training=TrainingRecord(
            source=dataset.name,
            data=dataset.digest,
            seed=config.training.seed,
            validation_fraction=_fraction(
                dataset, "validation", config.data.validation_fraction
            ),
            test_fraction=_fraction(dataset, "test", config.data.test_fraction),
            epochs=len(history),
            best_epoch=max((e.epoch for e in history if e.best), default=0),
            longest=int(dataset.part("train").lengths.max()),
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            parts={
                name: PartMetrics(
                    count=metrics.count,
                    error=metrics.error,
                    macro_f1=metrics.macro_f1,
                    calibration_error=metrics.calibration_error,
                    calibration_error_by_chance=metrics.calibration_error_by_chance,
                    intervals=Intervals(**asdict(metrics.intervals)),
                )
                for name, metrics in after.items()
            },
            calibration_error_before=before[part].calibration_error,
            columns=Columns(
                config.data.sequence_column,
                config.data.label_column,
                config.data.step_column,
                group=config.data.group_column,
            ).named()
            or None,
            settings=_settings(config),
            versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        ),
    )


def input_of(dataset: Dataset) -> Frames | Ids | Records:
    """Return the description of a network's input."""
    features, names = len(dataset.features), dataset.features
    vocabulary = dataset.vocabulary
    if dataset.schema is not None:
        return Records(
            features=features,
            names=names,
            kinds=tuple(column.kind for column in dataset.schema.fields),
            sizes=tuple(column.size for column in dataset.columns),
            widths=tuple(column.width for column in dataset.columns),
        )
    if vocabulary is None:
        return Frames(features=features, names=names)
    return Ids(
        kind=vocabulary.kind,
        features=features,
        names=names,
        sizes=tuple(column.size for column in vocabulary.columns),
        widths=tuple(column.width for column in vocabulary.columns),
    )


def _fraction(dataset: Dataset, part: str, chosen: float | None) -> float:
    """Return the fraction that cuts the same part from the same data again."""
    if not len(dataset.part(part)):
        return 0.0
    defaults = {
        "validation": splits.VALIDATION_FRACTION,
        "test": splits.TEST_FRACTION,
    }
    return defaults[part] if chosen is None else chosen


def _settings(config: Config) -> dict[str, dict[str, JsonValue]]:
    """Return all settings; of paths the last part, since a bundle is for others to read."""
    settings = config.model_dump(mode="json", exclude={"name"})
    for section, name in (
        ("data", "source"),
        ("data", "test"),
        ("training", "warm_start"),
        ("augmentation", "recombine_words"),
    ):
        if path := settings[section][name]:
            settings[section][name] = Path(path).name
    return settings
