"""Predict with a bundle in Python, without a service: ONNX Runtime and no TensorFlow."""
