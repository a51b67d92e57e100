"""Tests of `model.export`."""
