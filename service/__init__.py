"""From a request's sequences to its answer, over HTTP."""

import os

# ONNX Runtime (1.29 and later) else tells its maker about every model that it loads.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
