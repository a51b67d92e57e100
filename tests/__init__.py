"""Tests, in folders as `service` and `model` have them."""
