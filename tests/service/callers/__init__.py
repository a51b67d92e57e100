"""Tests of `service.callers`."""
