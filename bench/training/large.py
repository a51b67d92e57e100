"""The start of a training on a large file: seconds to the first update, and memory.

    python -m bench.training.large [--sequences 1000000] [--steps 50] [--features 10]
                                   [--folder FOLDER] [--formats npz parquet]

Makes sequences of normally distributed numbers, writes them as NumPy arrays that are not
compressed and as Parquet, and trains on each file in a process of its own, as the command
`unrolled train FILE` does, for some updates. Memory is that of /proc/self/status: anonymous
memory is the process' own, file-backed memory can be dropped by the system at any time.
The peaks are beyond what the process has after importing TensorFlow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
UPDATES = 50
BLOCK = 10_000  # sequences made and written at a time
CHILD = """
import json, sys, threading, time
begin = time.perf_counter()

def memory():
    lines = open("/proc/self/status").read().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = {"anonymous": "RssAnon", "file-backed": "RssFile", "resident": "VmRSS"}
    return {name: int(fields[key].split()[0]) / 1024 for name, key in names.items()}

import tensorflow as tf
tf.random.stateless_normal((1,), (0, 0))
base = memory()
imported = time.perf_counter() - begin
processor = time.process_time()
peaks, ended = dict(base), threading.Event()

def watch():
    while not ended.wait(0.01):
        for name, value in memory().items():
            peaks[name] = max(peaks[name], value)

threading.Thread(target=watch, daemon=True).start()
from model import workflow
from model.training import steps

train_step, times = steps.Trainer.train_step, []

def timed(self, *batch, **options):
    results = train_step(self, *batch, **options)
    times.append(time.perf_counter())
    if len(times) == 1:
        first["processor"] = time.process_time() - processor
    if len(times) == int(sys.argv[3]):
        raise KeyboardInterrupt
    return results

first = {}
steps.Trainer.train_step = timed
try:
    workflow.train(sys.argv[1], runs=sys.argv[2], output=sys.argv[2])
except KeyboardInterrupt:
    pass
ended.set()
print(json.dumps({
    "import": imported,
    "first update": times[0] - begin,
    "processor": first["processor"],
    "updates a second": (len(times) - 1) / (times[-1] - times[0]),
    "base": base,
    "peaks": {name: peaks[name] - base[name] for name in peaks},
}))
"""


def make(path: Path, sequences: int, steps: int, features: int) -> None:
    """Write an .npz; its five classes differ by their means."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, sequences).astype(np.int32)
    x = np.lib.format.open_memmap(
        path.with_suffix(".npy"), "w+", np.float32, shape=(sequences * steps, features)
    )
    for start in range(0, sequences, BLOCK):
        means = labels[start : start + BLOCK, None, None] / 4
        shape = (len(means), steps, features)
        frames = random.standard_normal(shape, np.float32) + means
        x[start * steps :][: len(means) * steps] = frames.reshape(-1, features)
    lengths = np.full(sequences, steps, np.int32)
    np.savez(path, x=x, lengths=lengths, y=labels)
    path.with_suffix(".npy").unlink()


def convert(source: Path, path: Path) -> None:
    """Write the same sequences as Parquet: a row for each step."""
    import pyarrow
    from pyarrow import parquet

    from model.datasets import readers

    data = readers.read(source)
    writer = None
    for start in range(0, len(data), BLOCK):
        part = data.take(np.arange(start, min(start + BLOCK, len(data))))
        ids = np.repeat(np.arange(start, start + len(part)), part.lengths)
        columns = {"sequence": ids, "label": np.repeat(part.targets, part.lengths)}
        columns |= dict(zip(data.features, part.frames.T, strict=True))
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def train(path: Path) -> dict:
    """Train on a file in a process of its own; return times and memory in MB."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-c", CHILD, str(path), runs, str(UPDATES)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.training.large",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--formats", nargs="+", default=["npz", "parquet"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        paths = {name: folder / f"large.{name}" for name in ("npz", "parquet")}
        if not paths["npz"].exists():
            make(paths["npz"], options.sequences, options.steps, options.features)
        if "parquet" in options.formats and not paths["parquet"].exists():
            convert(paths["npz"], paths["parquet"])
        for name in options.formats:
            path = paths[name]
            path.read_bytes()  # into the page cache, for each format alike
            begin, result = time.perf_counter(), train(path)
            peaks = ", ".join(f"{k} {v:,.0f} MB" for k, v in result["peaks"].items())
            print(
                f"{name}: {path.stat().st_size / 2**20:,.0f} MB;"
                f" first update after {result['first update']:.1f} s (of which"
                f" {result['import']:.1f} s import TensorFlow; processor time after that"
                f" {result['processor']:.1f} s);"
                f" {result['updates a second']:.0f} updates a second;"
                f" peaks beyond the import: {peaks}"
                f" ({time.perf_counter() - begin:.0f} s in all)",
                flush=True,
            )


if __name__ == "__main__":
    main()
