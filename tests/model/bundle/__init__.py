"""Tests of `model.bundle`."""
