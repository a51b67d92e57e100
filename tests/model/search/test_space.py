"""The settings that a search varies."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from model.config import Config
from model.datasets import builtin
from model.datasets.dataset import Dataset
from model.datasets.readers import Columns
from model.datasets.readers.table_layout import RecordOptions
from model.datasets.text import TextOptions
from model.search import space
from model.training import augmentation, defaults
from tests.support.bundles import write_csv, write_events
from tests.support.networks import make_dataset


def build(dataset, *fixed, **settings):
    config = Config().update(settings)
    return space.build(config, dataset, fixed)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(counts=(40, 0, 8))


def make_long(steps, sequences=12):
    return Dataset(
        name="long",
        task="classify",
        frames=np.random.default_rng(0).normal(size=(sequences * steps, 1)),
        lengths=np.full(sequences, steps),
        targets=np.arange(sequences) % 2,
        classes=("a", "b"),
        features=("x",),
        split=np.zeros(sequences, np.int8),
    )


def test_first_trial_has_the_defaults(dataset):
    """The first trial has the settings that a training without a search has."""
    searched = build(dataset)
    first = searched.settings(searched.starts[0])
    expected = defaults.resolve(Config(), dataset)
    assert defaults.resolve(first, dataset) == expected


def test_starts_are_within_the_space(dataset):
    """The first trials differ, and have a value for each setting that is searched."""
    for data in (dataset, make_long(300), make_dataset("label", counts=(40, 0, 0))):
        searched = build(data)
        assert len(searched.starts) > 2
        for index, start in enumerate(searched.starts):
            assert start.keys() == searched.distributions.keys()
            for name, value in start.items():
                distribution = searched.distributions[name]
                inside = distribution.to_internal_repr(value)
                assert distribution._contains(inside), (name, value)
            assert start not in searched.starts[:index]
            defaults.resolve(searched.settings(start), data)


def test_fixed_settings_are_not_searched(dataset):
    """Settings that are fixed keep their values, and what they decide is not searched."""
    searched = build(
        dataset,
        *("hidden", "epochs", "optimizer", "noise", "window"),
        network={"hidden": 7},
        training={"epochs": 3, "optimizer": "rmsprop"},
        augmentation={"noise": 0.5, "window": 0.1},
    )
    assert not searched.distributions.keys() & {"hidden", "updates", "weight_decay"}
    assert "noise" not in searched.distributions
    choices = searched.distributions["augmentation"].choices
    assert "window" not in choices
    assert "several" not in choices
    assert "time_warp" in choices
    for start in searched.starts:
        config = searched.settings(start)
        assert config.network.hidden == 7
        assert (config.training.epochs, config.training.optimizer) == (3, "rmsprop")
        assert config.augmentation.noise == 0.5


def test_presets_search_epochs(dataset):
    """Epochs that are set but not fixed are searched in place of updates."""
    searched = build(dataset, training={"epochs": 12})
    assert searched.starts[0]["epochs"] == 12
    assert "updates" not in searched.distributions


def test_by_the_data(dataset):
    """Settings that make no difference for the data are not searched."""
    assert "normalise" in build(dataset).distributions
    assert "normalise" not in build(make_long(30)).distributions
    label = build(make_dataset("label", counts=(40, 0, 0))).distributions
    assert not label.keys() & {"read", "stack"}


def test_stack():
    """Long sequences are stacked to a few dozen or hundred steps."""
    assert "stack" not in build(make_long(30)).distributions
    distribution = build(make_long(1000)).distributions["stack"]
    assert isinstance(distribution, CategoricalDistribution)
    assert {8, 16, 32} <= set(distribution.choices)
    assert max(distribution.choices) < 64


def test_every_augmentation_is_valid(dataset):
    """Each choice of augmentation can be trained."""
    for name in space.AUGMENTATIONS:
        searched = build(dataset)
        config = searched.settings({"augmentation": name})
        augmentation.check(config.augmentation, dataset)


def test_describe(dataset):
    """A trial's settings in words, without those that are off."""
    searched = build(dataset)
    assert space.describe(searched.starts[0]).startswith("GRU, 1 layer, 64 units")
    text = space.describe(
        {
            "bidirectional": True,
            "stack": 1,
            "updates": 1200,
            "augmentation": "time_warp",
        }
    )
    assert text == "both directions, 1,200 updates, time warp 0.2"


def test_text_and_records(tmp_path):
    """Settings of frames are not searched; the dropout of embeddings is."""
    texts = builtin.load_source(
        write_csv(tmp_path / "a.csv"), text=TextOptions(text="body", label="kind")
    )
    records = builtin.load_source(
        write_events(tmp_path / "b.csv"),
        columns=Columns("visit"),
        records=RecordOptions(("event",), ("bytes",)),
    )
    for data in (texts, records):
        searched = build(data)
        names = {*searched.distributions}
        assert not names & {"noise", "augmentation", "normalise", "stack"}
        assert {"embedding_dropout", "read", "cell"} <= names
        for start in searched.starts:
            settings = defaults.resolve(searched.settings(start), data)
            augmentation.check(settings.augmentation, data)
