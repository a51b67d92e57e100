"""Throughput and latency of the service beside what one would build instead.

All servers serve the same random weights and answer the same requests, which one load
generator sends, in turns; every response is compared with ONNX Runtime's.
"""
