"""Seconds an epoch of the presets, beside a plain PyTorch loop of the same sizes.

    python bench/training [--epochs 3] [--presets digits letters] [--torch PYTHON]

Both train on the same sequences with the same cell, layers, units, dropout, batch
size, optimizer and clipping, on all cores, one after the other by turns. The
PyTorch loop is what its tutorials show: a shuffled DataLoader whose batches are
padded to their longest sequence, `nn.GRU` or `nn.LSTM` over the padded batch (or,
in a second figure, over `pack_padded_sequence`), `backward`, clip, step. Ours is
`model.training` with everything that it does beyond that: bucketing and, as the
preset has it, augmentation. Augmentation is left out of a further row, since
PyTorch's loop has none.

PyTorch may live in another environment (`--torch`), as it brings its own OpenMP.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOP = Path(__file__).with_name("torch_loop.py")


def ours(preset: str, epochs: int, augment: bool) -> list[float]:
    """Seconds of each epoch's training pass, after one that warms up."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tempfile import TemporaryDirectory
from model import config
from model.datasets import builtin
from model.training import loop
from model.training.runs import Run

class Clock(loop.Callback):
    def on_epoch_begin(self, epoch, batches):
        self.begun, self.left = time.perf_counter(), batches
    def on_batch_end(self, cost, error):
        self.left -= 1
        if not self.left:
            print(time.perf_counter() - self.begun, flush=True)

chosen = config.load(config.presets()[{preset!r}])
changes = {{"training": {{"epochs": {epochs + 1}}}}}
if not {augment}:
    changes["augmentation"] = config.AugmentationConfig().model_dump()
with TemporaryDirectory() as folder:
    data = builtin.load(chosen.data.source)
    loop.fit(data, chosen.update(changes), Run(Path(folder)), callback=Clock())
"""
    return _seconds([sys.executable, "-c", code])


def theirs(preset: str, epochs: int, packed: bool, python: str) -> list[float]:
    """The same of the PyTorch loop."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from model import config
    from model.datasets import builtin

    chosen = config.load(config.presets()[preset])
    data = builtin.load(chosen.data.source).part("train")
    network, train = chosen.network, chosen.training
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.npz")
        arrays = {
            "frames": data.frames,
            "lengths": data.lengths,
            "targets": data.targets,
        }
        np.savez(path, **arrays)
        spec = {
            "data": path,
            "task": data.task,
            "features": len(data.features),
            "classes": len(data.classes),
            "cell": network.cell,
            "layers": network.layers,
            "hidden": network.hidden,
            "dropout": network.dropout,
            "bidirectional": network.bidirectional,
            "batch": train.batch,
            "learning_rate": train.learning_rate,
            "clip_norm": train.clip_norm,
            "epochs": epochs,
            "packed": packed,
        }
        return _seconds([python, str(LOOP), json.dumps(spec)])


def _seconds(command: list[str]) -> list[float]:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    return [float(line) for line in result.stdout.split()][1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3, help="timed, a turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--presets", nargs="+", default=["digits", "letters"])
    parser.add_argument("--torch", default=sys.executable, help="Python with torch")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; median seconds an epoch (smallest to largest)")
    for preset in options.presets:
        count, python = options.epochs, options.torch
        turns = {
            "PyTorch, padded": partial(theirs, preset, count, False, python),
            "PyTorch, packed": partial(theirs, preset, count, True, python),
            "Unrolled": partial(ours, preset, count, True),
            "Unrolled, no augmentation": partial(ours, preset, count, False),
        }
        rows: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(options.turns):
            for name, turn in turns.items():
                rows[name] += turn()
        best = min(statistics.median(rows[n]) for n in rows if n.startswith("PyTorch"))
        for name, seconds in rows.items():
            middle = statistics.median(seconds)
            print(
                f"{preset:10} {name:27} {middle:7.2f}"
                f" ({min(seconds):.2f} to {max(seconds):.2f})"
                f"  {middle / best:.2f}x of the faster PyTorch",
                flush=True,
            )


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - begun:.0f} s")
