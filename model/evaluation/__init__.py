"""Metrics of predictions: errors, calibration, and the sequences that were seen before."""
