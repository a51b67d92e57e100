"""Rows C: start, shutdown, crashes, and bundles that cannot be loaded."""
