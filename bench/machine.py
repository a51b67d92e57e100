"""What the figures were measured on, and with."""

import json
import os
import platform
import subprocess
from pathlib import Path

from bench.serving.competitors import CORES

PACKAGES = ["tensorflow", "onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop"]
PACKAGES += ["httptools", "pydantic", "orjson", "msgspec", "litserve", "bentoml"]


def describe() -> dict[str, str | int | float]:
    """Cores that may be used, the processor's name, and how busy it is already."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return {"cores": CORES, "processor": name, "load": os.getloadavg()[0]}


def busy_seconds() -> float:
    """CPU time that all programs together have used since the machine started."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def versions(python: str) -> dict[str, str]:
    """Of what an interpreter has installed; empty where there is no interpreter."""
    code = f"""
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {{"python": platform.python_version()}}
for name in {PACKAGES!r}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return {}
    return json.loads(result.stdout) if result.returncode == 0 else {}
