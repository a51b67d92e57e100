"""Tests of `service.registry`."""
