"""Formats: request bodies to arrays, and arrays to response bodies.

Bytes come in from `http`, `api` and `compat`; float32 arrays go to the pool. Nothing here
knows the models that exist.
"""
