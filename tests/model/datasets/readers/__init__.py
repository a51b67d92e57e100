"""Tests of `model.datasets.readers`."""
