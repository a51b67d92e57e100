"""Choose the settings that a run leaves open, by its data."""

import numpy as np

from model.config import Config
from model.datasets.dataset import Dataset

# Steps, the median of a training part. Through more of them the last output hardly
# learns: see docs/decisions.md.
LONG = 50


def resolve(config: Config, dataset: Dataset) -> Config:
    """Return the config with a value for each setting that is open (None)."""
    if config.network.read is not None:
        return config
    lengths = dataset.part("train").lengths
    long = dataset.task == "classify" and len(lengths) and np.median(lengths) > LONG
    return config.update({"network": {"read": "mean" if long else "last"}})
