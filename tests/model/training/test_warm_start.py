"""A training that starts from the weights of a bundle."""

from dataclasses import replace

import numpy as np
import pytest

import model
from model.bundle import bundle
from model.config import Config, ConfigError
from model.datasets.dataset import TEST
from model.training import defaults, loop, warm_start
from tests.model.test_workflow import NAMES, TINY, make_table
from tests.support import exports


@pytest.fixture(params=exports.KINDS)
def exported(request):
    return exports.load()[request.param]


def build(dataset, exported, **changes):
    """A new network with the settings of a bundle."""
    config = warm_start.settings(Config(), exported.bundle.metadata)
    return loop.build(dataset, defaults.resolve(config.update(changes), dataset))


def test_equal(exported):
    """With the same classes the network computes what the bundle's computes."""
    network = build(exported.dataset, exported)
    warm_start.apply(network, exported.dataset, exported.bundle)
    network.temperature.assign(exported.bundle.metadata.temperature)
    frames, lengths = exported.frames([3, 7, 1])
    np.testing.assert_array_equal(
        network.probabilities(network(frames, lengths)),
        exported.expected(frames, lengths),
    )


def test_other_classes(exported):
    """Known classes are matched by name; the weights of others are those that were drawn."""
    old = exported.dataset.classes
    dataset = exported.dataset.map_classes((old[1], "new", old[0], *old[2:]))
    network = build(dataset, exported)
    drawn = [weight[..., 1] for weight in network.head.get_weights()]
    warm_start.apply(network, dataset, exported.bundle)
    for weight, column in zip(network.head.get_weights(), drawn, strict=True):
        np.testing.assert_array_equal(weight[..., 1], column)
    frames, lengths = exported.frames([3, 7, 1])
    places = [2, 0, *range(3, len(old) + 1)]
    source = exported.source[0]
    np.testing.assert_allclose(
        network(frames, lengths).numpy()[..., places],
        source(frames, lengths),
        rtol=1e-5,
    )


class TestRefusals:
    def test_other_data(self):
        """A bundle for another task, or with other features, is refused."""
        classify, label = (exports.load()[k] for k in ("classify-gru", "label-lstm"))
        network = build(classify.dataset, classify)
        with pytest.raises(
            ConfigError, match=r"is to classify, and the bundle .* label"
        ):
            warm_start.apply(network, classify.dataset, label.bundle)
        other = replace(classify.dataset, features=("x", "y", "z"))
        with pytest.raises(
            ConfigError, match="has the features x, y, z, and the bundle"
        ):
            warm_start.apply(network, other, classify.bundle)

    def test_other_settings(self):
        """A setting of the network that differs from the bundle's is named."""
        metadata = exports.load()["classify-gru"].bundle.metadata
        same = Config().update({"network": {"hidden": metadata.hidden}})
        assert warm_start.settings(same, metadata).network.hidden == metadata.hidden
        other = Config().update({"network": {"hidden": metadata.hidden + 1}})
        with pytest.raises(ConfigError, match=r"network\.hidden is .* leave it out"):
            warm_start.settings(other, metadata)


def test_warnings(exported):
    """Sequences that the bundle was trained on are counted if they will measure it."""
    dataset = exported.dataset
    assert warm_start.warnings(dataset, exported.bundle) == [
        f"the bundle that the training starts from was trained on"
        f" {len(dataset.part('validation'))} of the {(dataset.split > 0).sum()} sequences"
        " that will measure the network, whose errors will look too low: name other ones"
        " for validation and test (column split)"
    ]
    crossed = dataset.with_split(np.zeros(len(dataset)))
    (line,) = warm_start.warnings(crossed, exported.bundle)
    assert f"trained on {(dataset.split < TEST).sum()} of the {len(dataset)} " in line
    new = dataset.part("test")
    new = new.with_split(np.full(len(new), TEST))
    assert warm_start.warnings(new, exported.bundle) == []


@pytest.mark.slow
def test_first_weights():
    """A training whose updates change nothing ends with the bundle's weights."""
    exported = exports.load()["classify-gru"]
    training = {"epochs": 1, "learning_rate": 1e-12, "optimizer": "rmsprop"}
    training["warm_start"] = str(exported.folder)
    config = warm_start.settings(Config(), exported.bundle.metadata)
    trained = loop.fit(exported.dataset, config.update({"training": training}))
    pairs = zip(
        trained.network.trainable_variables,
        exported.source[0].trainable_variables,
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_train(tmp_path):
    """`model.train` takes the columns of the bundle by name, and its network."""
    options = {"output": tmp_path / "trained", "runs": tmp_path / "runs"}
    options |= {**NAMES, **TINY, "progress": False}
    first = model.train(make_table(), name="machines", **options)
    table = make_table(seed=1)[["state", "y", "x", "t", "machine"]]
    table["unused"] = 1.0
    table.loc[table["machine"] < "m05", "state"] = "press"
    del options["layers"], options["hidden"]
    second = model.train(
        table, name="machines", warm_start=str(first.bundle), promote="never", **options
    )
    metadata = bundle.read(second.bundle).metadata
    assert metadata.input.names == ("x", "y")
    assert (metadata.layers, metadata.hidden) == (1, 4)
    assert "press" in metadata.classes
    before = bundle.read(first.bundle).metadata
    assert metadata.normalisation == before.normalisation
