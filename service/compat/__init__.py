"""The APIs of other servers: Open Inference Protocol v2 (Triton, KServe) and TensorFlow Serving.

Requests are translated and computed as those of `api` are.
"""
