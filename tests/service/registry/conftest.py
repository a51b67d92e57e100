"""Fixtures that the tests of the registry share."""

import pytest

from tests.support.bundles import copy_bundle


@pytest.fixture
def root(bundles, tmp_path):
    """A copy of `walks` and `tags` that can be broken."""
    for name in ("walks", "tags"):
        copy_bundle(bundles / name / "1", tmp_path / "bundles" / name / "1")
    return tmp_path / "bundles"
