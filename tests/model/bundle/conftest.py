"""Copies of bundles, to be changed."""

import shutil

import pytest

from tests.support.bundles import VOWELS, copy_bundle


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped bundle `vowels`, which has no state."""
    return copy_bundle(VOWELS, tmp_path / "bundles" / "vowels" / "1")


@pytest.fixture
def walks(bundles, tmp_path):
    """A copy of the bundle `walks`, which has the signature `step`."""
    return shutil.copytree(bundles / "walks" / "1", tmp_path / "copy" / "walks" / "1")
