"""Train recurrent networks on sequences, export them as bundles, and predict with them.

>>> import model
>>> network = model.load("bundles/vowels")  # ONNX Runtime, no TensorFlow
"""

import os
from typing import TYPE_CHECKING

# ONNX Runtime 1.29 and later reports every model that it loads to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["Network", "load"]

if TYPE_CHECKING:
    from model.inference.network import Network as Network
    from model.inference.network import load as load
else:
    # Imported when they are used: the service imports `model.bundle` and none of them.
    _MODULES = {"Network": "model.inference.network", "load": "model.inference.network"}

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return [*globals(), *_MODULES]
