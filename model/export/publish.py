"""From a trained network to its bundle: calibrate, measure, describe, export."""

import datetime
from pathlib import Path

import numpy as np

from model.bundle import bundle
from model.bundle.bundle import Metadata
from model.config import Config
from model.datasets.dataset import PARTS, Dataset
from model.export import export
from model.network.network import Network
from model.report import report
from model.training import calibration, evaluation
from model.training.evaluation import Metrics, Predictions
from model.training.runs import Epoch


def publish(
    network: Network,
    history: list[Epoch],
    dataset: Dataset,
    config: Config,
    root: Path,
    *,
    int8: bool = False,
) -> tuple[Path, dict[str, Metrics]]:
    """Fit the temperature on the validation part, measure every part, and write
    the next version of the bundle.

    Args:
        int8: write a network with int8 weights too.

    Returns:
        the bundle's folder, and the figures of each part.

    Raises:
        ExportError: an exported format doesn't answer as the network does.
        QuantisationError: int8 weights change too much.
    """
    parts = {name: dataset.part(name) for name in PARTS}
    answers = {
        name: evaluation.predict(part, lambda *batch: network(*batch).numpy())
        for name, part in parts.items()
        if len(part)
    }
    temperature = calibration.fit_temperature(
        answers["validation"].scores, answers["validation"].targets
    )
    network.temperature.assign(temperature)
    before = {name: _figures(a, 1.0, dataset) for name, a in answers.items()}
    after = {name: _figures(a, temperature, dataset) for name, a in answers.items()}

    def describe(version: str) -> Metadata:
        return _metadata(network, history, dataset, config, before, after, version)

    def write(folder: Path, metadata: Metadata) -> None:
        report.write(folder, metadata, report.Report(history, after, before))

    judge = "test" if len(parts["test"]) else "validation"
    folder = export.export_bundle(
        network,
        parts[judge],
        root,
        describe=describe,
        report=write,
        seed=config.training.seed,
        int8=judge if int8 else None,
    )
    return folder, after


def _figures(answers: Predictions, temperature: float, dataset: Dataset) -> Metrics:
    probabilities = calibration.softmax(answers.scores / temperature)
    scored = Predictions(probabilities, answers.targets, answers.lengths)
    return evaluation.compute_metrics(scored, dataset.classes)


def _metadata(
    network: Network,
    history: list[Epoch],
    dataset: Dataset,
    config: Config,
    before: dict[str, Metrics],
    after: dict[str, Metrics],
    version: str,
) -> Metadata:
    part = "test" if "test" in before else "validation"
    settings = config.network
    return Metadata(
        name=config.name,
        version=version,
        task=dataset.task,
        input=bundle.Frames(features=len(dataset.features), names=dataset.features),
        classes=dataset.classes,
        cell=settings.cell,
        layers=settings.layers,
        hidden=settings.hidden,
        bidirectional=settings.bidirectional,
        reset_after=settings.reset_after,
        dropout=settings.dropout,
        state_size=settings.state_size,
        normalisation=bundle.Normalisation(
            mean=tuple(network.mean.numpy().tolist()),
            scale=tuple(network.scale.numpy().tolist()),
        ),
        temperature=float(np.float32(network.temperature.numpy())),
        training=bundle.TrainingRecord(
            source=dataset.name,
            data=dataset.digest,
            seed=config.training.seed,
            validation_fraction=config.data.validation_fraction,
            test_fraction=config.data.test_fraction,
            epochs=len(history),
            best_epoch=max((e.epoch for e in history if e.best), default=0),
            longest=int(dataset.part("train").lengths.max()),
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            parts={
                name: bundle.Part(
                    count=figures.count,
                    error=figures.error,
                    macro_f1=figures.macro_f1,
                    calibration_error=figures.calibration_error,
                )
                for name, figures in after.items()
            },
            calibration_error_before=before[part].calibration_error,
        ),
    )
