"""Tests of `model.search`."""
