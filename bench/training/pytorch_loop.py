"""The plain PyTorch loop that `bench/training` compares with; prints seconds an epoch.

python bench/training/pytorch_loop.py JSON
"""

import json
import sys
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

spec = json.loads(sys.argv[1])
arrays = dict(np.load(spec["data"]))
offsets = np.concatenate([[0], np.cumsum(arrays["lengths"])])
label = spec["task"] == "label"
items = [
    (
        torch.from_numpy(arrays["frames"][a:b]),
        torch.from_numpy(arrays["targets"][a:b])
        if label
        else int(arrays["targets"][i]),
    )
    for i, (a, b) in enumerate(pairwise(offsets))
]


def collate(batch):
    frames, targets = zip(*batch, strict=True)
    lengths = torch.tensor([len(f) for f in frames])
    targets = (
        pad_sequence(targets, True, -100) if label else torch.tensor(targets)
    ).long()
    return pad_sequence(frames, True), lengths, targets


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        kind = nn.LSTM if spec["cell"] == "lstm" else nn.GRU
        self.rnn = kind(
            spec["features"],
            spec["hidden"],
            spec["layers"],
            batch_first=True,
            dropout=spec["dropout"],
            bidirectional=spec["bidirectional"],
        )
        self.drop = nn.Dropout(spec["dropout"])
        width = spec["hidden"] * (2 if spec["bidirectional"] else 1)
        self.head = nn.Linear(width, spec["classes"])

    def forward(self, x, lengths):
        if spec["packed"]:
            packed = pack_padded_sequence(x, lengths, True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        else:
            y, _ = self.rnn(x)
        if not label:
            y = y[torch.arange(len(y)), lengths - 1]
        return self.head(self.drop(y))


torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), spec["learning_rate"])
loader = torch.utils.data.DataLoader(
    items, spec["batch"], shuffle=True, collate_fn=collate
)
loss = nn.CrossEntropyLoss(ignore_index=-100)
for _ in range(spec["epochs"] + 1):  # the first warms up
    begun = time.perf_counter()
    for x, lengths, targets in loader:
        optimizer.zero_grad()
        logits = net(x, lengths)
        cost = loss(logits.flatten(0, -2), targets.flatten())
        cost.backward()
        nn.utils.clip_grad_norm_(net.parameters(), spec["clip_norm"])
        optimizer.step()
    print(time.perf_counter() - begun, flush=True)
