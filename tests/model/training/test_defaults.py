"""The settings that a run leaves open."""

from dataclasses import replace

import numpy as np
import pytest

from model.config import OPEN, Config, ConfigError
from model.datasets.dataset import TEST, TRAIN, VALIDATION, Dataset
from model.training import defaults


def make(lengths, *, task="classify", split=None):
    steps = sum(lengths)
    return Dataset(
        name="made",
        task=task,
        frames=np.zeros((steps, 1)),
        lengths=lengths,
        targets=np.zeros(len(lengths) if task == "classify" else steps, np.int32),
        classes=("a",),
        features=("x",),
        split=[TRAIN] * len(lengths) if split is None else split,
    )


def test_read():
    """A classifier of long sequences reads the mean, by the training part alone; a
    choice is kept."""
    for task, lengths, read in (
        ("classify", [40, 50, 60], "last"),
        ("classify", [40, 51, 60], "mean"),
        ("label", [40, 51, 60], "last"),
    ):
        for other in (300, 2):
            split = [TRAIN] * 3 + [TEST] * 9
            dataset = make([*lengths, *[other] * 9], task=task, split=split)
            assert defaults.resolve(Config(), dataset).network.read == read
            chosen = Config().update({"network": {"read": "last+mean"}})
            assert defaults.resolve(chosen, dataset).network.read == "last+mean"


def test_stack():
    """Long sequences to classify are stacked to some 50 to 110 steps, others are not."""
    for steps in (150, 151, 286, 1_460, 5_000):
        stack = defaults.resolve(Config(), make([steps] * 3)).network.stack
        assert stack == 1 if steps == 150 else 50 <= steps / stack <= 110
        label = make([steps] * 3, task="label")
        assert defaults.resolve(Config(), label).network.stack == 1


def test_updates():
    """Small sets get hundreds of updates, whatever the batch, and no stop before half."""
    for sequences in (1, 30, 400, 3_000):
        for batch in (4, 16):
            config = Config().update({"training": {"batch": batch}})
            training = defaults.resolve(config, make([2] * sequences)).training
            updates, epochs = training.length(sequences)
            assert updates >= 500
            assert training.patience >= epochs / 2


def test_larger_for_more_data():
    """More sequences never get a smaller network or batch."""
    before = (0, 0, 0)
    for sequences in (10, 1_000, 20_000):
        config = defaults.resolve(Config(), make([1] * sequences))
        sizes = (config.network.layers, config.network.hidden, config.training.batch)
        assert all(size >= least for size, least in zip(sizes, before, strict=True))
        before = sizes


def test_settings_are_kept():
    """A setting that was set stays, even at its usual value, and none stays open."""
    dataset = make([60] * 30)
    usual = Config()
    sections = {
        name: section
        for section in ("network", "training", "augmentation")
        for name in type(getattr(usual, section)).model_fields
    }
    values = {
        name: getattr(getattr(usual, section), name)
        for name, section in sections.items()
    }
    for name in OPEN:
        section = sections[name]
        value = 7 if name == "updates" else values[name]
        config = Config().update({section: {name: value}})
        resolved = defaults.resolve(config, dataset)
        assert getattr(getattr(resolved, section), name) == value
        assert defaults.resolve(resolved, dataset) == resolved
    epochs = defaults.resolve(Config().update({"training": {"epochs": 3}}), dataset)
    assert epochs.training.length(30) == (6, 3)
    both = Config().update({"training": {"epochs": 3, "updates": 9}})
    with pytest.raises(ConfigError, match="--updates or --epochs"):
        defaults.resolve(both, dataset)


def test_best_by():
    """Few answers of a validation part are too coarse to choose weights by their error."""
    for task, steps, best_by in (
        ("classify", 20, "cost"),
        ("label", 20, "cost"),
        ("label", 30, "error"),
    ):
        split = [TRAIN] * 10 + [VALIDATION] * 20
        dataset = make([steps] * 30, task=task, split=split)
        assert defaults.resolve(Config(), dataset).training.best_by == best_by


def test_folds():
    """Each fold leaves out one group, where there are fewer groups than folds."""
    dataset = replace(make([3] * 40), frames=np.arange(120)[:, None])
    assert defaults.resolve(Config(), dataset).training.folds == 5
    for count, folds in ((3, 3), (9, 5)):
        grouped = replace(dataset, groups=np.arange(40) % count)
        assert defaults.resolve(Config(), grouped).training.folds == folds
    chosen = Config().update({"training": {"folds": 4}})
    assert defaults.resolve(chosen, grouped).training.folds == 4


def test_statement():
    """A line says what is trained, and by which options it changes."""
    dataset = make([60] * 40)
    config = defaults.resolve(Config().update({"network": {"hidden": 48}}), dataset)
    line = defaults.statement(config, dataset)
    assert line.startswith(
        "model: 40 training sequences: GRU 1 x 48, mean of the outputs"
    )
    for option in ("--layers", "--hidden", "--read", "--updates"):
        assert option in line
