"""Small networks, data and settings that the tests of `model` share."""

import json
from itertools import pairwise

import numpy as np

from model import config
from model.datasets.dataset import PARTS, UNASSIGNED, Dataset, default_features

FEATURES, CLASSES = 3, 4

# The three formulas of a cell: what `make_network` takes, by name.
CELLS = {
    "gru": {"cell": "gru"},
    "gru-original": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
}


def make_network(task="classify", *, features=FEATURES, seed=0, **settings):
    """A network whose every weight is random, biases and statistics too."""
    # Imported here: tests of data sets need no TensorFlow.
    from model.network.network import Network

    settings = {"layers": 2, "hidden": 5, "dropout": 0.0, **settings}
    random = np.random.default_rng(seed)
    network = Network(
        config.NetworkConfig(**settings),
        task=task,
        features=features,
        classes=CLASSES,
        mean=random.normal(size=features),
        scale=random.uniform(0.5, 2, features),
    )
    for weight in network.trainable_variables:
        weight.assign(random.normal(0, 0.5, weight.shape))
    return network


def weights(network):
    """Copies of all weights, those that aren't trained too."""
    return [weight.numpy() for weight in network.weights]


def make_frames(lengths, *, features=FEATURES, seed=0, padding=0.0, more=0):
    """Random frames [B, T, F] with `padding` past each length, and lengths [B]."""
    random = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int32)
    shape = (len(lengths), lengths.max(initial=0) + more, features)
    frames = np.full(shape, padding, np.float32)
    for row, length in zip(frames, lengths, strict=True):
        row[:length] = random.normal(size=(length, features))
    return frames, lengths


def make_dataset(
    task="classify", *, counts=(24, 12, 12), spread=0.3, seed=0, classes=3
):
    """Sequences whose frames lie about the centre of their class.

    Args:
        counts: sequences for training, validation and test.
        spread: deviation from the centre; the centres are about 2 apart.
    """
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 2, (classes, FEATURES))
    lengths = random.integers(1, 9, sum(counts))
    steps = int(lengths.sum())
    if task == "classify":
        targets = random.permutation(np.arange(len(lengths)) % classes)
        places = np.repeat(targets, lengths)
    else:
        places = targets = random.permutation(np.arange(steps) % classes)
    return Dataset(
        name="made",
        task=task,
        frames=centres[places] + random.normal(0, spread, (steps, FEATURES)),
        lengths=lengths,
        targets=targets,
        classes=("ant", "bee", "cat", "dog", "elk")[:classes],
        features=default_features(FEATURES),
        split=np.repeat([0, 1, 2], counts),
    )


def make_config(**changes):
    """Settings of a tiny network; sections by name are updated."""
    tiny = config.Config().update(
        {
            "name": "made",
            "network": {"layers": 1, "hidden": 6, "dropout": 0.0},
            "training": {"epochs": 3, "batch": 8, "learning_rate": 0.02},
        }
    )
    return tiny.update(changes)


def write_json_lines(path, dataset, *, parts=True):
    """The file that reads back as `dataset`."""
    with path.open("w", encoding="utf-8") as file:
        for index, (start, stop) in enumerate(pairwise(dataset.offsets)):
            record = {"frames": dataset.frames[start:stop].tolist()}
            names = np.array(dataset.classes)[dataset.target(index)].tolist()
            record["label" if dataset.task == "classify" else "labels"] = names
            if dataset.groups is not None:
                record["group"] = str(dataset.groups[index])
            if parts and dataset.split[index] != UNASSIGNED:
                record["split"] = PARTS[dataset.split[index]]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
