"""Published bundles of four kinds of networks, and the networks behind them."""

import functools
import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from model.bundle import bundle, folders, labels
from model.bundle.bundle import Bundle
from model.evaluation import evaluation
from model.export import publish
from model.network import reload
from model.training import loop
from model.training.runs import Epoch
from tests.support.bundles import cached
from tests.support.networks import CELLS, make_config, make_dataset

KINDS = {
    "classify-gru": ("classify", CELLS["gru"]),
    "classify-gru-original": (
        "classify",
        {**CELLS["gru-original"], "read": "last+mean", "stack": 3},
    ),
    "label-lstm": ("label", CELLS["lstm"]),
    "label-lstm-both-ways": ("label", {**CELLS["lstm"], "bidirectional": True}),
}
HISTORY = [
    Epoch(1, 2.0, 60.0, 2.5, 50.0, 0.01, True),
    Epoch(2, 1.0, 40.0, 2.0, 45.0, 0.01, True),
    Epoch(3, 0.5, 20.0, 2.1, 46.0, 0.01, False),
]


@dataclass(frozen=True)
class Exported:
    """An exported bundle, and the network and the data behind it."""

    kind: str
    folder: Path

    @cached_property
    def source(self):
        """The network, the data set and the settings, built anew."""
        network, dataset, config = make_network_and_data(self.kind)
        network.temperature.assign(self.bundle.metadata.temperature)
        return network, dataset, config

    @property
    def dataset(self):
        return self.source[1]

    @property
    def config(self):
        return self.source[2]

    @property
    def bundle(self) -> Bundle:
        return bundle.read(self.folder)

    def expected(self, frames, lengths):
        """The live network's probabilities of whole sequences."""
        network = self.source[0]
        return network.probabilities(network(frames, lengths)).numpy()

    @cached_property
    def steps(self):
        """Both formats as functions, by name."""
        return {
            "SavedModel": reload.saved_model(self.folder),
            "ONNX": reload.onnx(self.folder / bundle.NETWORK),
        }

    def zeros(self, count):
        return np.zeros((count, self.bundle.metadata.state_size), np.float32)

    def frames(self, lengths, seed=0):
        """Random frames about the data's mean, and garbage behind each length."""
        random = np.random.default_rng(seed)
        lengths = np.asarray(lengths, np.int32)
        frames = random.normal(0, 2, (len(lengths), lengths.max(), 3))
        return frames.astype(np.float32), lengths


def make_network_and_data(kind):
    """A network of random weights, and data of which it gets about 70 % right."""
    task, cell = KINDS[kind]
    dataset = make_dataset(task, counts=(15, 12, 9), classes=4)
    config = make_config(
        name=kind, network={"layers": 2, "hidden": 5, "dropout": 0.25, **cell}
    )
    network = loop.build(dataset, config)
    random = np.random.default_rng(7)
    for weight in network.trainable_variables:
        weight.assign(random.normal(0, 0.6, weight.shape))
    predicted = evaluation.predict(dataset, network).scores.argmax(1)
    right = random.uniform(size=len(predicted)) < 0.7
    targets = np.where(right, predicted, dataset.targets)
    return network, replace(dataset, targets=targets), config


def _write(root):
    for kind in KINDS:
        network, dataset, config = make_network_and_data(kind)
        publish.publish(network, HISTORY, dataset, config, root)


def folder() -> Path:
    """The folder of the published bundles."""
    return cached("exports", _write, Path(__file__))


@functools.cache
def load() -> dict[str, Exported]:
    """The published bundles by kind; what they compute is kept."""
    return {kind: Exported(kind, folder() / kind / "1") for kind in KINDS}


def publish_copy(source, root, name, **changes) -> Path:
    """Publish a copy of a bundle as the next version of a name, as an export does.

    Args:
        changes: keys of its `bundle.json`, which no digest covers.
    """
    rename = functools.partial(labels.publish, folders=folders.of_name(name, root))
    after = folders.highest_version(name, root)
    with bundle.writing(root, name, after=after, rename=rename) as (new, version):
        shutil.copytree(source, new, dirs_exist_ok=True)
        marker = new / bundle.MARKER
        changes = {"name": name, "version": version} | changes
        marker.write_text(json.dumps(json.loads(marker.read_text()) | changes))
    return root / name / version


def valid(values, lengths):
    """The answers that count, in one row."""
    if values.ndim == 2:
        return values
    return np.concatenate([v[:n] for v, n in zip(values, lengths, strict=True)])
