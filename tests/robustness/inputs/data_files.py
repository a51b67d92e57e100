"""Row G1: data files of a few KB that expand to gigabytes, in training and bulk scoring."""

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

MEMORY_PEAK = 512  # MiB of the process that reads
SECONDS = 60
PART = 2**20  # rows written at once
READ = """
import json, sys, time
from pathlib import Path
kind, path = sys.argv[1:]
start, message = time.monotonic(), ""
try:
    if kind == "bulk":
        from model.bundle import bundle
        from service.bulk import shards
        metadata = bundle.read(Path("bundles/vowels/1")).metadata
        list(shards.open_file(path, metadata).read(0))
    else:
        from model.datasets import readers
        readers.read(Path(path))
except Exception as error:
    message = f"{type(error).__name__}: {error}"
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps([message, peak, time.monotonic() - start]))
"""


def training_parquet(path: Path) -> None:
    """60 million equal rows."""
    values = {"sequence": "a", "label": "x", "u": 0.0}
    part = pa.table({name: pa.repeat(value, PART) for name, value in values.items()})
    with parquet.ParquetWriter(path, part.schema, compression="zstd") as file:
        for _ in range(60):
            file.write_table(part)


def training_npz(path: Path) -> None:
    """600 million zeros."""
    count = 600 * PART
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 1)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(count // PART):
                file.write(bytes(PART))
        for name in ("lengths", "y"):
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, np.array([count if name == "lengths" else 0]))


def bulk_parquet(path: Path) -> None:
    """A row of 200 million equal numbers."""
    inner = pa.array(np.zeros(200 * PART, np.float32))
    steps = pa.ListArray.from_arrays([0, len(inner)], inner)
    column = pa.ListArray.from_arrays([0, 1], steps)
    parquet.write_table(pa.table({"frames": column}), path, compression="zstd")


FILES: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "parquet": ("training", "rows.parquet", training_parquet),
    "npz": ("training", "zeros.npz", training_npz),
    "bulk": ("bulk", "frames.parquet", bulk_parquet),
}


@row("G1", "Data files of a few KB that expand to gigabytes", full=1)
def data_files(tally: Tally, amount: int) -> None:
    """Each is refused by name, in little memory."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, file, write) in FILES.items():
            path = Path(folder) / file
            write(path)
            message, peak, seconds = _read(kind, path)
            tally.check(file in message, f"{name}: {message or 'it was read'}")
            tally.check(peak < MEMORY_PEAK, f"{name}: {peak:.0f} MiB")
            tally.figure(f"{name}, bytes", path.stat().st_size)
            tally.figure(f"{name}, MiB", f"{peak:.0f} in {seconds:.1f} s")


def _read(kind: str, path: Path) -> tuple[str, float, float]:
    """The error of reading a file, the memory it took, and the time."""

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))

    try:
        process = subprocess.run(
            [sys.executable, "-c", READ, kind, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=limit_memory,
        )
        message, peak, seconds = json.loads(process.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return f"{type(error).__name__}", float("inf"), SECONDS
    return message, peak, seconds
