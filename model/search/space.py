"""The settings that a search varies, and their bounds: by the data and what is fixed.

All are about those that a training would choose for the data by itself.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from model.config import OPEN, SECTION_OF, Config, nested
from model.datasets.dataset import Dataset
from model.training import defaults

Params = Mapping[str, Any]  # values of the distributions, by their names
# Augmentations beside noise, of which a trial takes one: many would be too much to learn.
AUGMENTATIONS: dict[str, dict[str, float]] = {
    "none": {},
    "offset": {"offset": 0.1},
    "magnitude": {"magnitude": 0.1},
    "time_warp": {"time_warp": 0.2},
    "window": {"window": 0.2},
    "several": {"magnitude": 0.1, "time_warp": 0.1, "window": 0.1},
}
STACKED_STEPS = 25, 220  # of a sequence of median length, after stacking
# Changes to the defaults that are tried first; of updates and epochs the factor.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02, "updates": 1.5, "epochs": 1.5},
    {"bidirectional": True},
    {"hidden": 32, "noise": 0.3, "label_smoothing": 0.1, "read": "last+mean"},
    {"cell": "lstm", "augmentation": "time_warp"},
)


@dataclass(frozen=True)
class Space:
    """The choices of a search.

    Attributes:
        config: the settings that all trials share.
        distributions: of the settings that are searched, by name.
        starts: the first trials.
    """

    config: Config
    distributions: dict[str, BaseDistribution]
    starts: tuple[dict[str, Any], ...]

    def settings(self, params: Params) -> Config:
        """Return the settings of a trial; what they leave open is for `defaults`."""
        values: dict[str, Any] = {}
        for name, value in params.items():
            match name:
                case "augmentation":
                    values |= AUGMENTATIONS[value]
                case "weight_decay" if value:
                    values |= {"optimizer": "adamw", name: value}
                case "weight_decay":
                    values["optimizer"] = "adam"
                case "learning_rate":
                    values[name] = float(f"{value:.2g}")
                case "dropout" | "embedding_dropout":
                    values[name] = round(value, 2)
                case _:
                    values[name] = value
        changes = {
            name: value
            for name, value in values.items()
            if name in OPEN or value != _value(name, self.config)
        }
        return self.config.update(nested(changes))


def describe(params: Params) -> str:
    """Return the settings of a trial in words, without those that are off."""
    texts = {
        "cell": lambda v: v.upper(),
        "layers": lambda v: f"{v} layer{'s' if v > 1 else ''}",
        "hidden": lambda v: f"{v} units",
        "bidirectional": lambda v: "both directions" if v else "",
        "dropout": lambda v: f"dropout {v:.2g}",
        "embedding_dropout": lambda v: f"embedding dropout {v:.2g}" if v else "",
        "stack": lambda v: f"stack {v}" if v > 1 else "",
        "learning_rate": lambda v: f"learning rate {v:.2g}",
        "batch": lambda v: f"batch {v}",
        "updates": lambda v: f"{v:,} updates",
        "epochs": lambda v: f"{v:,} epochs",
        "weight_decay": lambda v: f"weight decay {v:g}" if v else "",
        "label_smoothing": lambda v: f"label smoothing {v:g}" if v else "",
        "noise": lambda v: f"noise {v:g}" if v else "",
        "normalise": lambda v: "normalised as a whole" if v == "whole" else "",
        "read": lambda v: f"{v.replace('+', ' and ')} output",
        "augmentation": lambda v: ", ".join(
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in AUGMENTATIONS[v].items()
        ),
    }
    return ", ".join(text for k, v in params.items() if (text := texts.get(k, str)(v)))


def build(config: Config, dataset: Dataset, fixed: Collection[str]) -> Space:
    """Return the space for a data set.

    Args:
        config: the settings to start from.
        fixed: names of the settings that are not searched.

    Raises:
        ConfigError: the settings are invalid for the data, see `defaults.resolve`.
    """
    resolved = defaults.resolve(config, dataset)
    distributions = {
        name: distribution
        for name, distribution in _distributions(resolved, dataset, fixed).items()
        if distribution is not None and not _is_fixed(name, fixed)
    }
    first = {
        name: _nearest(distribution, _value(name, resolved))
        for name, distribution in distributions.items()
    }
    starts = [first]
    for variant in VARIANTS:
        changes = {
            k: v * first[k] if k in ("updates", "epochs") else v
            for k, v in variant.items()
            if k in distributions
        }
        start = first | {k: _nearest(distributions[k], v) for k, v in changes.items()}
        if start not in starts:
            starts.append(start)
    return Space(config, distributions, tuple(starts))


def _is_fixed(name: str, fixed: Collection[str]) -> bool:
    related = {
        "updates": ("updates", "epochs"),
        "epochs": ("updates", "epochs"),
        "weight_decay": ("weight_decay", "optimizer"),
    }
    return any(other in fixed for other in related.get(name, (name,)))


def _distributions(
    resolved: Config, dataset: Dataset, fixed: Collection[str]
) -> dict[str, BaseDistribution | None]:
    """Return all distributions; None where a choice makes no difference for the data."""
    network, training = resolved.network, resolved.training
    classify = dataset.task == "classify"
    train = dataset.part("train")
    updates, epochs = training.length(len(train))
    batches = {max(1, training.batch // 2), training.batch, 2 * training.batch}
    augmentations = [
        name
        for name, values in AUGMENTATIONS.items()
        if not any(key in fixed or _value(key, resolved) for key in values)
    ]
    by_updates = training.updates is not None
    plain = not dataset.columns  # frames of numbers alone
    slowest = 0.0005 if dataset.vocabulary is not None else 0.002
    return {
        "cell": _choices("gru", "lstm"),
        "layers": IntDistribution(1, max(2, network.layers + 1)),
        "hidden": IntDistribution(
            max(1, network.hidden // 4), 2 * network.hidden, log=True
        ),
        "bidirectional": _choices(False, True),
        "dropout": FloatDistribution(0, 0.5, step=0.05),
        "embedding_dropout": None if plain else FloatDistribution(0, 0.5, step=0.05),
        "read": _choices("last", "mean", "last+mean") if classify else None,
        "stack": _choices(*_stacks(resolved, train)) if classify and plain else None,
        "learning_rate": FloatDistribution(slowest, 0.03, log=True),
        "batch": _choices(*sorted(batches)),
        "updates": _around(updates, 50) if by_updates else None,
        "epochs": None if by_updates else _around(epochs, 1),
        "weight_decay": _choices(0.0, 0.1, 0.5),
        "label_smoothing": _choices(0.0, 0.1),
        "noise": _choices(0.0, 0.1, 0.3) if plain else None,
        "normalise": _choices("features", "whole")
        if len(dataset.features) > 1 and plain
        else None,
        "augmentation": _choices(*augmentations) if plain else None,
    }


def _choices(*values: Any) -> CategoricalDistribution | None:
    return CategoricalDistribution(values) if len(values) > 1 else None


def _around(number: int, step: int) -> IntDistribution:
    """Return whole numbers from a third of a number to one and a half times as many."""
    low = max(step, number // 3 // step * step)
    high = max(low + step, 3 * number // 2 // step * step)
    return IntDistribution(low, high, step=step)


def _stacks(resolved: Config, train: Dataset) -> list[int]:
    """Return the numbers of frames in a step that leave enough steps, and not too many."""
    length, (low, high) = float(np.median(train.lengths)), STACKED_STEPS
    powers = [2**n for n in range(8)]
    fitting = {k for k in powers if low <= length / k <= high}
    return sorted(fitting | {resolved.network.stack or 1})


def _value(name: str, config: Config) -> Any:
    """Return a setting's value in a config."""
    if name == "augmentation":
        return "none"
    if name == "weight_decay":
        uses = config.training.optimizer == "adamw"
        return config.training.weight_decay if uses else 0.0
    return getattr(getattr(config, SECTION_OF[name]), name)


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value within a distribution that is nearest to another."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            if value in choices:
                return value
            numbers = [c for c in choices if isinstance(c, (int, float))]
            return min(numbers, key=lambda c: abs(c - value)) if numbers else choices[0]
        case IntDistribution(low=low, high=high, step=step):
            steps = round((min(max(value, low), high) - low) / step)
            return int(min(low + steps * step, high))
        case FloatDistribution(low=low, high=high):
            return float(min(max(value, low), high))
    raise TypeError(distribution)
