"""Fixtures that the tests of the other servers' protocols share."""

import pytest

from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import running


@pytest.fixture(scope="module")
def limited(bundles):
    """A client of a service with small limits."""
    limits = {"max_sequences": 4, "max_steps": 20, "max_cells": 90}
    settings = Settings(port=0, bundles=bundles, workers=1, **limits)
    with running(settings, load_engine=OnnxEngine) as service:
        yield service.http
