"""Tests of `service.streaming`."""
