"""Seconds an epoch of the presets, beside a plain PyTorch loop of the same sizes.

    python -m bench.training [--epochs 3] [--presets digits letters] [--torch PYTHON]

Both train on the same sequences with the same cell, layers, units, dropout, batch size,
optimizer and clipping, on all cores, in turns. The PyTorch loop is that of its
tutorials: a shuffled DataLoader whose batches are padded to their longest sequence,
`nn.GRU` or `nn.LSTM` over the padded batch (or over `pack_padded_sequence`),
`backward`, clip, step. Ours is `model.training` with everything it does beyond that:
bucketing and the preset's augmentation. A further row is without augmentation, since
the PyTorch loop has none.

PyTorch may live in another environment (`--torch`), since it brings its own OpenMP.
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
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]


def unrolled(preset: str, epochs: int, augment: bool) -> list[float]:
    """Seconds of each epoch's training steps, after a warm-up epoch."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tempfile import TemporaryDirectory
from model import config
from model.datasets import builtin
from model.training import loop
from model.training.runs import Run

class Timer(loop.Callback):
    def on_epoch_begin(self, epoch, batches):
        self.start, self.left = time.perf_counter(), batches
    def on_batch_end(self, cost, error):
        self.left -= 1
        if not self.left:
            print(time.perf_counter() - self.start, flush=True)

preset = config.load(config.presets()[{preset!r}])
changes = {{"training": {{"epochs": {epochs + 1}}}}}
if not {augment}:
    changes["augmentation"] = config.AugmentationConfig().model_dump()
with TemporaryDirectory() as folder:
    data = builtin.load(preset.data.source)
    loop.fit(data, preset.update(changes), Run(Path(folder)), callback=Timer())
"""
    return _seconds([sys.executable, "-c", code])


def pytorch(preset: str, epochs: int, packed: bool, python: str) -> list[float]:
    """The same for the PyTorch loop, in its own environment."""
    import numpy as np

    from model import config
    from model.datasets import builtin

    loaded = config.load(config.presets()[preset])
    data = builtin.load(loaded.data.source).part("train")
    network, training = loaded.network, loaded.training
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.npz")
        np.savez(path, frames=data.frames, lengths=data.lengths, targets=data.targets)
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
            "batch": training.batch,
            "learning_rate": training.learning_rate,
            "clip_norm": training.clip_norm,
            "epochs": epochs,
            "packed": packed,
        }
        return _seconds([python, __file__, "--pytorch-loop", json.dumps(spec)])


def pytorch_loop(spec: dict) -> None:
    """Train in plain PyTorch, and print the seconds of each epoch."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn.utils import rnn

    arrays = dict(np.load(spec["data"]))
    offsets = np.concatenate([[0], np.cumsum(arrays["lengths"])])
    label = spec["task"] == "label"
    frames, targets = map(torch.from_numpy, (arrays["frames"], arrays["targets"]))
    items = [
        (frames[a:b], targets[a:b] if label else int(targets[i]))
        for i, (a, b) in enumerate(pairwise(offsets))
    ]

    def collate(batch):
        frames, targets = zip(*batch, strict=True)
        lengths = torch.tensor([len(f) for f in frames])
        if label:
            padded = rnn.pad_sequence(targets, True, -100)
        else:
            padded = torch.tensor(targets)
        return rnn.pad_sequence(frames, True), lengths, padded.long()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            cell = nn.LSTM if spec["cell"] == "lstm" else nn.GRU
            self.rnn = cell(
                spec["features"],
                spec["hidden"],
                spec["layers"],
                batch_first=True,
                dropout=spec["dropout"],
                bidirectional=spec["bidirectional"],
            )
            self.dropout = nn.Dropout(spec["dropout"])
            width = spec["hidden"] * (2 if spec["bidirectional"] else 1)
            self.head = nn.Linear(width, spec["classes"])

        def forward(self, x, lengths):
            if spec["packed"]:
                packed = rnn.pack_padded_sequence(
                    x, lengths, True, enforce_sorted=False
                )
                y, _ = rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            else:
                y, _ = self.rnn(x)
            if not label:
                y = y[torch.arange(len(y)), lengths - 1]
            return self.head(self.dropout(y))

    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), spec["learning_rate"])
    loader = torch.utils.data.DataLoader(
        items, spec["batch"], shuffle=True, collate_fn=collate
    )
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    for _ in range(spec["epochs"] + 1):  # the first is a warm-up
        start = time.perf_counter()
        for x, lengths, y in loader:
            optimizer.zero_grad()
            cost = loss(network(x, lengths).flatten(0, -2), y.flatten())
            cost.backward()
            nn.utils.clip_grad_norm_(network.parameters(), spec["clip_norm"])
            optimizer.step()
        print(time.perf_counter() - start, flush=True)


def _seconds(command: list[str]) -> list[float]:
    """The seconds that a command prints, without those of the warm-up."""
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    return [float(line) for line in result.stdout.split()][1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=3, help="measured, a turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--presets", nargs="+", default=["digits", "letters"])
    parser.add_argument("--torch", default=sys.executable, help="Python with torch")
    parser.add_argument("--pytorch-loop", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pytorch_loop:
        pytorch_loop(options.pytorch_loop)
        return
    begin = time.perf_counter()
    print(f"{os.cpu_count()} cores; median seconds an epoch (smallest to largest)")
    for preset in options.presets:
        epochs, python = options.epochs, options.torch
        rows = {
            "PyTorch, padded": partial(pytorch, preset, epochs, False, python),
            "PyTorch, packed": partial(pytorch, preset, epochs, True, python),
            "Unrolled": partial(unrolled, preset, epochs, True),
            "Unrolled, no augmentation": partial(unrolled, preset, epochs, False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.turns):
            for name, measure in rows.items():
                seconds[name] += measure()
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        best = min(medians["PyTorch, padded"], medians["PyTorch, packed"])
        for name, values in seconds.items():
            middle = medians[name]
            print(
                f"{preset:10} {name:27} {middle:7.2f}"
                f" ({min(values):.2f} to {max(values):.2f})"
                f"  {middle / best:.2f}x of the faster PyTorch",
                flush=True,
            )
    print(f"took {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
