"""Requests a second of the service beside those that one would build instead.

    python -m bench.serving --help

All serve the same random weights and answer the same requests, which one load
generator sends, by turns; every answer is compared with ONNX Runtime's.
"""
