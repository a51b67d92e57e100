"""Bulk scoring of a million short sequences on Ray, killed on the way and resumed.

    python -m bench.cluster.bulk_scoring [--sequences 1000000]

Runs `python -m service classify FILE --engine ray`. Needs the extra `ray`.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

from bench.environment import ROOT, parser

FEATURES = 12  # of the bundle vowels
TIMEOUT = 1800  # seconds for each run


def write(file: Path, sequences: int) -> int:
    """Write random sequences of 5 to 15 steps; the number of all steps."""
    rng = np.random.default_rng(1)
    steps = 0
    with file.open("wb") as output:
        for number in range(sequences):
            frames = rng.normal(size=(rng.integers(5, 16), FEATURES)).round(3)
            steps += len(frames)
            line = {"id": number, "frames": frames}
            output.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    return steps


def start(file: Path, target: Path) -> subprocess.Popen[str]:
    command = ["classify", file, "--engine", "ray", "--model", "vowels", "--to", target]
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, command), "--top-k", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def written_shards(target: Path) -> dict[str, int]:
    """The shards that are written, and when."""
    return {path.name: path.stat().st_mtime_ns for path in target.glob("0*.jsonl")}


def kill_after_a_third(process: subprocess.Popen[str], target: Path) -> int:
    """Kill the command when a third of the shards are written; the number of all."""
    deadline, shards = time.monotonic() + TIMEOUT, 0
    while not shards or len(written_shards(target)) < shards / 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
        job = target / "job.json"
        shards = json.loads(job.read_text())["shards"] if job.exists() else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)  # until its cluster has ended
    return shards


def main() -> None:
    command = parser("bench.cluster.bulk_scoring", __doc__)
    command.add_argument("--sequences", type=int, default=1_000_000)
    sequences = command.parse_args().sequences
    with tempfile.TemporaryDirectory() as name:
        file, target = Path(name) / "many.jsonl", Path(name) / "predictions"
        steps = write(file, sequences)
        size = file.stat().st_size / 1e6
        print(f"{sequences:,} sequences, {steps:,} steps, {size:,.0f} MB", flush=True)
        shards = kill_after_a_third(start(file, target), target)
        before = written_shards(target)
        begin = time.monotonic()
        result = json.loads(start(file, target).communicate(timeout=TIMEOUT)[0])
        seconds = time.monotonic() - begin
        after = written_shards(target)
        assert all(after[name] == before[name] for name in before), "computed twice"
        assert result["computed"] == shards - len(before)
        numbers = [
            orjson.loads(line)["id"]
            for path in sorted(target.glob("0*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]
        assert numbers == list(range(sequences)), "not all of them, in order"
        computed = result["sequences"]
        print(
            f"killed after {len(before)} of {shards} shards; the second run computed"
            f" {result['computed']}: {computed:,} sequences in {seconds:.0f} s"
            f" ({computed / seconds:,.0f} a second, with 15 to 20 s of starting Ray);"
            f" {sequences - computed:,} are of the first run"
        )


if __name__ == "__main__":
    main()
