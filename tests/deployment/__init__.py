"""Tests of `deployment`."""
