"""The settings that a run leaves open."""

import numpy as np
import pytest

from model.config import Config
from model.datasets.dataset import TEST, TRAIN, Dataset
from model.training import defaults


def make(task, lengths, split):
    steps = sum(lengths)
    return Dataset(
        name="made",
        task=task,
        frames=np.zeros((steps, 1)),
        lengths=lengths,
        targets=np.zeros(len(lengths) if task == "classify" else steps, np.int32),
        classes=("a",),
        features=("x",),
        split=split,
    )


@pytest.mark.parametrize(
    ("task", "lengths", "read"),
    [
        ("classify", [40, 50, 60], "last"),
        ("classify", [40, 51, 60], "mean"),
        ("label", [40, 51, 60], "last"),
    ],
)
def test_read(task, lengths, read):
    """A classifier of long sequences reads the mean, by the training part alone; a
    choice is kept."""
    for more, part in ([300] * 9, TEST), ([2] * 9, TEST):
        split = [TRAIN] * len(lengths) + [part] * len(more)
        dataset = make(task, [*lengths, *more], split)
        assert defaults.resolve(Config(), dataset).network.read == read
        chosen = Config().update({"network": {"read": "last+mean"}})
        assert defaults.resolve(chosen, dataset) == chosen
