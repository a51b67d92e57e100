"""No library sends usage data."""

import os
import subprocess
import sys

import pytest

from tests.support.servers import ROOT

LOOK = """
import os, {module}
import numpy, onnxruntime
from onnxruntime import InferenceSession
names = [os.readlink(f"/proc/self/fd/{{number}}") for number in os.listdir("/proc/self/fd")
         if os.path.exists(f"/proc/self/fd/{{number}}")]
print([name for name in names if "onnxruntime.db" in name])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize(
    "module",
    ["service.worker.onnx_engine", "model.network.reload", "service.worker.main"],
)
def test_onnx_runtime_is_silent(module, tmp_path):
    """ONNX Runtime's telemetry is off wherever it is used."""
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    result = subprocess.run(
        [sys.executable, "-c", LOOK.format(module=module)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
    assert not list(tmp_path.rglob("onnxruntime.db"))
