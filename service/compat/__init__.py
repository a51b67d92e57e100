"""Other servers' APIs: the Open Inference Protocol v2 (Triton, KServe) and TensorFlow Serving.

Their requests are decoded by `codecs` and computed like those of `api`.
"""
