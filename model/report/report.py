"""Write the report of a network: four plots, the metrics, and the model card.

    history.png      cost and error by epoch
    confusion.png    confusion matrix
    reliability.png  reliability diagram, before and after calibration
    length.png       accuracy by length of the sequence
    metrics.json     the numbers in the plots
    card.md          the model card

The plots show the test part or, without one, the cross-validation or validation part.
`metrics.json` is strict JSON; numbers that aren't finite are null:

    name, version, task, classes, temperature    as in `bundle.json`
    unit                   what one prediction is for: "sequence" or "step"
    history                an object for each epoch, see `runs.Epoch`
    parts.PART             train, validation, cross_validation, test; each is optional
      count                predictions
      error, accuracy, macro_f1                  percent
      calibration_error    ECE {before, after} calibration, percent
      calibration_error_by_chance
                           mean ECE of a perfectly calibrated predictor on as many answers
      intervals            95 % intervals [low, high] of error, macro_f1 and
                           calibration_error (after calibration)
      class_accuracy       percent by class; null if the part has no such class
      by_class             count, precision, recall and f1 by class; percent, or null
      by_length            groups: shortest, longest (steps), count, accuracy (percent)
      reliability          {before, after}: bins of confidence, without empty ones:
                           from, to, confidence, accuracy (0 to 1), count
      confusion            counts, [true][predicted], in the order of classes
      groups               groups of the data that they are of; null if it has none
      baselines.NAME       logistic_regression, majority: count, learnt (answers), error and
                           its 95 % interval, difference (network minus baseline, on the
                           same answers): value, low, high; percent. Not of train
"""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from model.bundle.metadata import Metadata, shown_part
from model.evaluation.evaluation import Metrics
from model.report import card, plots
from model.training.runs import Epoch


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a training run."""

    history: list[Epoch]
    parts: dict[str, Metrics]  # after calibration
    before: dict[str, Metrics]  # the same parts with temperature 1


def write(folder: Path, metadata: Metadata, report: Report) -> None:
    """Write the six files into an existing folder."""
    part = shown_part(report.parts)
    after, before = report.parts[part], report.before[part]
    unit, title = card.UNITS[metadata.task], card.title(part)
    style: list[str | dict[str, Any]] = ["default", plots.STYLE]
    with matplotlib.style.context(style), warnings.catch_warnings():
        # Characters of class names that the font lacks become boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figures = {
            "history": plots.history(report.history, metadata.training.best_epoch),
            "confusion": plots.confusion(after, metadata.classes, f"{title}, {unit}s"),
            "reliability": plots.reliability(before, after, title, unit),
            "length": plots.length(after, title, unit),
        }
        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            # 256 colours make the file a third as large.
            image.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png")
    text = json.dumps(_metrics(metadata, report))
    strict = json.loads(text, parse_constant=lambda name: None)
    (folder / "metrics.json").write_text(json.dumps(strict) + "\n", encoding="utf-8")
    text = card.text(metadata, report.parts, report.before, shown=part)
    (folder / "card.md").write_text(text, encoding="utf-8")


def _metrics(metadata: Metadata, report: Report) -> dict[str, Any]:
    parts = {name: dataclasses.asdict(part) for name, part in report.parts.items()}
    for name, before in report.before.items():
        for key in ("calibration_error", "reliability"):
            parts[name][key] = {
                "before": getattr(before, key),
                "after": parts[name][key],
            }
    return {
        "name": metadata.name,
        "version": metadata.version,
        "task": metadata.task,
        "unit": card.UNITS[metadata.task],
        "classes": metadata.classes,
        "temperature": metadata.temperature,
        "history": [dataclasses.asdict(epoch) for epoch in report.history],
        "parts": parts,
    }
