"""Train recurrent networks on sequences, and export them as bundles."""

import os

# ONNX Runtime 1.29 and later reports every model that it loads to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
