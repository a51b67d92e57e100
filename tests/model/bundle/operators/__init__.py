"""Tests of `model.bundle.operators`."""
