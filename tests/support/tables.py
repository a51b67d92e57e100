"""Tables as people have them, broken Parquet, and networks whose features have names."""

import json
from pathlib import Path

import numpy as np
import pandas

from model.bundle import bundle
from model.datasets.readers import Columns
from tests.support.bundles import copy_bundle

FEATURES = ("vib x", "vib y", "temp")
STROKES = ("dx", "dy", "pressure")
COLUMNS = Columns(sequence="run", label="state", step="t")

# Shared bundles with names for their features: the source, and the names.
NAMED = {
    "machines": ("walks", FEATURES),
    "moods": ("both", FEATURES),
    "strokes": ("tags", STROKES),
}


def make_table(seed=0, lengths=(3, 1, 4), features=FEATURES, labels=("ok", "worn")):
    """A DataFrame in order: run, t, state, and the features.

    Args:
        labels: one for each sequence, in turn.
    """
    rng = np.random.default_rng(seed)
    names = [f"m{index}" for index in range(len(lengths))]
    table = pandas.DataFrame({"run": np.repeat(names, lengths)})
    table["t"] = np.concatenate([np.arange(length) for length in lengths])
    turns = [labels[index % len(labels)] for index in range(len(lengths))]
    table["state"] = np.repeat(turns, lengths)
    for name in features:
        table[name] = rng.normal(size=len(table)).astype(np.float32).astype(float)
    return table


def shuffle(table, seed):
    """The same table with its rows and its columns in another order."""
    mixed = table.sample(frac=1, random_state=seed)
    return mixed[np.random.default_rng(seed).permutation(table.columns)]


def sequences_of(table, features=FEATURES):
    """The frames [T, F] of each sequence, by its id."""
    ordered = table.sort_values("t")
    return {
        key: rows[[*features]].to_numpy(np.float32)
        for key, rows in ordered.groupby("run")
    }


def _write_json_rows(table, path):
    table.to_json(path, orient="records", lines=True, double_precision=15)


WRITERS = {
    "comma.csv": lambda table, path: table.to_csv(path, index=False),
    "semicolon.csv": lambda table, path: table.to_csv(
        path, index=False, sep=";", decimal=","
    ),
    "tab.tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "bar.csv": lambda table, path: table.to_csv(path, index=False, sep="|"),
    "rows.jsonl": _write_json_rows,
    "rows.parquet": lambda table, path: table.to_parquet(path, index=False),
}


def write_named_bundles(bundles: Path, root: Path) -> Path:
    """Write copies of shared bundles whose features and columns have names: `machines`
    (classify) and `moods` (label), which take FEATURES, and `strokes` (label)."""
    for name, (source, features) in NAMED.items():
        folder = copy_bundle(bundles / source / "1", root / name / "1")
        marker = folder / bundle.MARKER
        metadata = json.loads(marker.read_text())
        metadata["name"], metadata["input"]["names"] = name, features
        metadata["training"]["columns"] = COLUMNS.named()
        marker.write_text(json.dumps(metadata))
    return root


def score(scorer, path):
    """The lines of all shards of a file, as a bulk job computes them."""
    from service.bulk import shards

    file = shards.open_file(str(path), scorer.metadata, scorer.encoding)
    lines = []
    for number in range(file.count):
        rows = [file.parse(item) for item in file.read(number)]
        lines += map(json.loads, scorer.score(rows).text.splitlines())
    return lines


def understate(path, number):
    """Replace a number by 7 wherever it is in the footer of a Parquet file."""
    content, encoded = path.read_bytes(), _varint(number, 0)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    assert encoded in footer
    footer = footer.replace(encoded, _varint(7, len(encoded)))
    path.write_bytes(content[:start] + footer)


def _varint(number, width):
    """A positive number as Thrift encodes it, in at least `width` bytes."""
    left, out = 2 * number, bytearray()
    while left or len(out) < width:
        out.append(left & 127 | 128)
        left >>= 7
    out[-1] &= 127
    return bytes(out)
