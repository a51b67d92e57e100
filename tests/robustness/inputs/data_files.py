"""Files of a few thousand bytes that stand for gigabytes, for training and for bulk."""

import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import ROOT

MOST = 512  # MiB, of the process that reads
SECONDS = 60
PART = 2**20  # rows that are written at once
READ = """
import json, sys, time
from pathlib import Path
kind, path = sys.argv[1:]
begun, told = time.monotonic(), ""
try:
    if kind == "bulk":
        from service.bulk import shards
        found = shards.open_file(path)
        list(found.read(0))
    else:
        from model.datasets import readers
        readers.read(Path(path))
except Exception as error:
    told = f"{type(error).__name__}: {error}"
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps([told, peak, time.monotonic() - begun]))
"""


def long_rows(path: Path) -> None:
    """60 million rows of Parquet for training, all alike."""
    alike = {"sequence": ["a"], "label": ["x"], "u": [0.0]}
    part = pa.table({name: pa.repeat(v[0], PART) for name, v in alike.items()})
    with parquet.ParquetWriter(path, part.schema, compression="zstd") as file:
        for _ in range(60):
            file.write_table(part)


def zeros(path: Path) -> None:
    """An array of NumPy of 600 million zeros."""
    count = 600 * PART
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, 1)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, about)
            for _ in range(count // PART):
                file.write(bytes(PART))
        for name in ("lengths", "y"):
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, np.array([count if name == "lengths" else 0]))


def frames(path: Path) -> None:
    """A row of Parquet for bulk, of 200 million numbers that are all alike."""
    inner = pa.array(np.zeros(200 * PART, np.float32))
    steps = pa.ListArray.from_arrays([0, len(inner)], inner)
    column = pa.ListArray.from_arrays([0, 1], steps)
    parquet.write_table(pa.table({"frames": column}), path, compression="zstd")


BOMBS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "parquet": ("training", "rows.parquet", long_rows),
    "npz": ("training", "zeros.npz", zeros),
    "bulk": ("bulk", "frames.parquet", frames),
}


@row("G1", "files of a few KB that stand for gigabytes", full=1)
def files(tally: Tally, amount: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, file, write) in BOMBS.items():
            path = Path(folder) / file
            write(path)
            told, peak, seconds = _read(kind, path)
            tally.check(file in told, f"{name}: {told or 'it was read'}")
            tally.check(peak < MOST, f"{name}: {peak:.0f} MiB")
            size = path.stat().st_size
            tally.figure(f"{name}, bytes", size)
            tally.figure(f"{name}, MiB", f"{peak:.0f} in {seconds:.1f} s")


def _read(kind: str, path: Path) -> tuple[str, float, float]:
    """What is told of a file, the memory that it took, and the time."""

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))

    command = [sys.executable, "-c", READ, kind, str(path)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=bounded,
        )
        told, peak, seconds = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return f"{type(error).__name__}", float("inf"), SECONDS
    return told, peak, seconds
