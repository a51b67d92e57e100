"""Train recurrent networks on sequences, export them as bundles, and predict with them.

>>> import model
>>> result = model.train(table, by="machine", label="state")  # a DataFrame
>>> network = model.load("vowels")  # with ONNX Runtime, without TensorFlow
>>> network.classify(sequences).predictions[0].label
"""

import os
from typing import TYPE_CHECKING

# ONNX Runtime 1.29 and later reports every model that it loads to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["Network", "TrainingResult", "load", "train"]

if TYPE_CHECKING:
    from model.inference.network import Network as Network
    from model.inference.network import load as load
    from model.workflow import TrainingResult as TrainingResult
    from model.workflow import train as train
else:
    # Imported when they are used: the service imports `model.bundle` and none of them.
    _MODULES = {
        "Network": "model.inference.network",
        "load": "model.inference.network",
        "TrainingResult": "model.workflow",
        "train": "model.workflow",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return [*globals(), *_MODULES]
