"""A million short sequences by `python -m service classify FILE --engine ray`: killed on the
way, and gone on with. Needs the extra `ray`.

python -m bench.cluster.bulk_scoring [--sequences 1000000]
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
import typer

ROOT = Path(__file__).parents[2]
FEATURES = 12  # of the bundle vowels
SECONDS = 1800  # no run may take longer


def write(file: Path, sequences: int) -> int:
    """Random sequences of 5 to 15 steps; the steps of all."""
    rng = np.random.default_rng(1)
    steps = 0
    with file.open("wb") as out:
        for number in range(sequences):
            frames = rng.normal(size=(rng.integers(5, 16), FEATURES)).round(3)
            steps += len(frames)
            line = {"id": number, "frames": frames}
            out.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    return steps


def start(file: Path, to: Path) -> subprocess.Popen[str]:
    command = ["classify", file, "--engine", "ray", "--model", "vowels", "--to", to]
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, command), "--top-k", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def there(to: Path) -> dict[str, int]:
    """The shards that are written, and when."""
    return {path.name: path.stat().st_mtime_ns for path in to.glob("0*.jsonl")}


def main(sequences: int = 1_000_000) -> None:
    """Kill the command when a third of the shards are there, and start it again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, to = folder / "many.jsonl", folder / "answers"
        steps = write(file, sequences)
        size = file.stat().st_size / 1e6
        print(f"{sequences:,} sequences, {steps:,} steps, {size:,.0f} MB", flush=True)
        first, until = start(file, to), time.monotonic() + SECONDS
        while not (to / "job.json").exists():
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        shards = json.loads((to / "job.json").read_text())["shards"]
        while len(there(to)) < shards / 3:
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        time.sleep(5)  # for its cluster to end
        before = there(to)
        begun = time.monotonic()
        second = start(file, to)
        told = json.loads(second.communicate(timeout=SECONDS)[0])
        seconds = time.monotonic() - begun
        after = there(to)
        assert all(after[name] == before[name] for name in before), "computed twice"
        assert told["computed"] == shards - len(before)
        numbers = [
            orjson.loads(line)["id"]
            for path in sorted(to.glob("0*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]
        assert numbers == list(range(sequences)), "not all of them, in order"
        rate = told["sequences"] / seconds
        print(
            f"killed after {len(before)} of {shards} shards; the second run computed"
            f" {told['computed']}: {told['sequences']:,} sequences in {seconds:.0f} s"
            f" ({rate:,.0f} a second, with 15 to 20 s of starting Ray);"
            f" {sequences - told['sequences']:,} of the first run stand"
        )


if __name__ == "__main__":
    typer.run(main)
