"""The published bundles, by kind."""

import pytest

from tests.support import exports


@pytest.fixture(params=exports.KINDS)
def exported(request):
    return exports.load()[request.param]


@pytest.fixture
def shared():
    """One of them, for tests that need no other."""
    return exports.load()["classify-gru"]
