"""Choose the settings that a run leaves open, by its data.

The rules were found by cross-validation on public sets: see docs/decisions.md.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.config import Config, ConfigError
from model.datasets import splits
from model.datasets.dataset import Dataset
from model.datasets.splits import FEW

LONG = 50  # steps; through more of them the last output hardly learns
# Steps; longer sequences are stacked to about so many. They learn as well, and faster.
STACKED, MAX_UNSTACKED, MAX_STACK = 75, 150, 64
FEW_ANSWERS = 500  # of a validation part: its error is too coarse to choose weights by
MIN_REPEATED = 100  # answers of a cross-validation, with its repetitions


@dataclass(frozen=True, slots=True)
class Size:
    """The choices for up to a number of training sequences."""

    sequences: float
    layers: int
    hidden: int
    dropout: float
    batch: int
    epochs: int
    min_updates: int


SIZES = (
    Size(FEW, layers=1, hidden=64, dropout=0.2, batch=16, epochs=40, min_updates=1_000),
    Size(
        5_000, layers=1, hidden=128, dropout=0.2, batch=32, epochs=40, min_updates=2_000
    ),
    Size(
        100_000,
        layers=2,
        hidden=128,
        dropout=0.3,
        batch=64,
        epochs=40,
        min_updates=2_000,
    ),
    Size(
        np.inf,
        layers=2,
        hidden=200,
        dropout=0.2,
        batch=256,
        epochs=10,
        min_updates=10_000,
    ),
)


def resolve(config: Config, dataset: Dataset) -> Config:
    """Return the config with a value for each setting in `OPEN` that was not set.

    Raises:
        ConfigError: both epochs and updates are set; or there are too few sequences to
            train on, or to cross-validate.
    """
    explicit = config.training.model_fields_set
    if {"updates", "epochs"} <= explicit and config.training.updates is not None:
        raise ConfigError("give --updates or --epochs, not both")
    train = dataset.part("train")
    if not len(train):
        raise ConfigError(f"{dataset.name}: too few sequences for a train part")
    size = next(size for size in SIZES if len(train) <= size.sequences)
    few, steps = len(train) <= FEW, float(np.median(train.lengths))
    classify = dataset.task == "classify"
    chosen: dict[str, object] = {
        "layers": size.layers,
        "hidden": size.hidden,
        "dropout": size.dropout,
        "read": "mean" if classify and steps > LONG else "last",
        "stack": _stack(steps) if classify else 1,
        "learning_rate": 0.01 if few else 0.005,
        "warmup": 0.1,
        "noise": 0.1,
        "batch": size.batch,
    }
    if dataset.schema is not None:
        chosen |= {"noise": 0, "stack": 1}
    elif dataset.vocabulary is not None:
        chosen |= {"learning_rate": 0.002, "dropout": 0.5, "noise": 0, "stack": 1}
        chosen["batch"] = min(size.batch, 32)
        chosen["read"] = "last"
        chosen["prefixes"] = (
            classify
            and dataset.vocabulary.kind == "characters"
            and not config.network.bidirectional
            and config.network.read == "last"
        )
        size = replace(size, batch=32, epochs=min(size.epochs, 20))
    if "epochs" not in explicit:
        batch = config.training.batch if "batch" in explicit else size.batch
        batches = -(-len(train) // batch)
        chosen["updates"] = max(size.min_updates, size.epochs * batches)
    answers = dataset.part("validation").targets
    chosen["best_by"] = "cost" if len(answers) < FEW_ANSWERS else "error"
    units = len(train) if train.groups is None else splits.count_units(train)
    chosen["folds"] = max(2, min(config.training.folds, units))
    chosen["repeats"] = max(1, min(3, MIN_REPEATED // len(train)))
    resolved = config.update(_unset(config, chosen))
    _, epochs = resolved.training.length(len(train))
    return resolved.update(_unset(config, {"patience": -(-epochs // 2)}))


def statement(config: Config, dataset: Dataset) -> str:
    """Say in a line what is trained, and which options change it."""
    network, training = config.network, config.training
    train = dataset.part("train")
    updates, epochs = training.length(len(train))
    direction = " in both directions" if network.bidirectional else ""
    parts = [f"{network.cell.upper()} {network.layers} x {network.hidden}{direction}"]
    if dataset.task == "classify":
        parts.append(
            {
                "last": "last output",
                "mean": "mean of the outputs",
                "last+mean": "last output and mean of all",
            }[network.read]
        )
    if network.stack > 1:
        parts.append(f"{network.stack} frames a step")
    parts += [
        f"dropout {network.dropout:g}",
        f"{updates:,} updates of {training.batch} sequences ({epochs:,} epochs)",
        f"learning rate {training.learning_rate:g}",
        f"seed {training.seed}",
    ]
    if training.warm_start is not None:
        parts.append(f"from the weights of {training.warm_start}")
    if training.mixed_precision:
        parts.append("mixed precision")
    options = ["--layers", "--hidden", "--read", "--stack", "--updates"]
    if dataset.task == "label":
        options = [name for name in options if name not in ("--read", "--stack")]
    return (
        f"{config.name}: {len(train):,} training sequences: {', '.join(parts)}"
        f" ({', '.join(options)} to choose)"
    )


def _stack(steps: float) -> int:
    """Return a power of two that leaves some 55 to 105 of many steps."""
    if steps <= MAX_UNSTACKED:
        return 1
    return min(MAX_STACK, 2 ** round(np.log2(steps / STACKED)))


def _unset(config: Config, chosen: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return the chosen values of settings that were not set, by section."""
    return {
        section: {
            name: value
            for name, value in chosen.items()
            if name in type(getattr(config, section)).model_fields
            and name not in getattr(config, section).model_fields_set
        }
        for section in ("network", "training", "augmentation")
    }
