"""Logs, Prometheus metrics, and Triton's statistics."""
