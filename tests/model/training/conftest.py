"""A small data set, settings, and the run that other runs are compared with."""

import pytest

from model.training import loop
from model.training.runs import Run
from tests.model.training.events import Recorder
from tests.support.networks import make_config, make_dataset

# Everything that draws random numbers is on: order, dropout, augmentation, recombination.
RANDOM = {
    "network": {"dropout": 0.3, "layers": 2, "hidden": 6},
    "augmentation": {
        **{"time_warp": 0.2, "window": 0.2, "magnitude": 0.1, "noise": 0.1},
        "recombine": 0.5,
    },
    "training": {"epochs": 3, "seed": 3},
}


@pytest.fixture(scope="module")
def data():
    return make_dataset("label", counts=(25, 12, 9))


@pytest.fixture(scope="module")
def config():
    return make_config(**RANDOM)


@pytest.fixture(scope="module")
def whole(data, config, tmp_path_factory):
    """An uninterrupted run: its result, its folder, its events."""
    run, recorder = Run(tmp_path_factory.mktemp("whole")), Recorder()
    return loop.fit(data, config, run, callback=recorder), run, recorder
