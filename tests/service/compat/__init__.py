"""Tests of `service.compat`."""
