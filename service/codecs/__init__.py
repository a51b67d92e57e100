"""Bytes to arrays and back: each format that a request or an answer may have.

Nothing here knows which models there are.
"""
