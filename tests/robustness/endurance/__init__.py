"""Rows D: memory and latency over time."""
