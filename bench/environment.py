"""The machine that a benchmark runs on, and its command line."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORES = len(os.sched_getaffinity(0))
PACKAGES = ["tensorflow", "onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop"]
PACKAGES += ["httptools", "pydantic", "orjson", "msgspec", "litserve", "bentoml"]


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`. SIGTERM then ends the command through its
    `finally` blocks, which stop the servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def describe_machine() -> dict[str, str | int | float]:
    """Its usable cores, its processor, and its load; printed first."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    load = os.getloadavg()[0]
    print(f"{CORES} cores, {name}, load {load:.2f}", flush=True)
    return {"cores": CORES, "processor": name, "load": load}


def progress(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def busy_seconds() -> float:
    """CPU time that all programs have used since the machine started."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def versions(python: str) -> dict[str, str]:
    """The versions installed beside an interpreter; empty if it does not exist."""
    code = f"""
import json, platform
from importlib.metadata import PackageNotFoundError, version
versions = {{"python": platform.python_version()}}
for name in {PACKAGES!r}:
    try:
        versions[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(versions))
"""
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return {}
    return json.loads(result.stdout) if result.returncode == 0 else {}
