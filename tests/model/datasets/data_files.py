"""Random data sets, written in every format that `model.datasets.readers` reads."""

import csv

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from model.datasets import readers
from model.datasets.dataset import PARTS, Dataset, default_features
from tests.support.networks import write_json_lines


def make_ragged(task, *, seed=0, count=12, features=3):
    """A random ragged set in which every class and every part occurs."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, count)
    lengths[0] = 2  # two steps of two classes: a CSV must see the task.
    steps = int(lengths.sum())
    return Dataset(
        name="data",
        task=task,
        frames=rng.normal(size=(steps, features)) * 10.0 ** rng.integers(-9, 9),
        lengths=lengths,
        targets=np.arange(count if task == "classify" else steps) % 4,
        classes=("a", "b", "c d", 'e"é,'),
        features=default_features(features),
        split=np.arange(count) % 4 - 1,
    )


def labels_of_steps(data, index):
    """The label of each step of a sequence."""
    codes = np.broadcast_to(data.target(index), data.lengths[index])
    return [data.classes[code] for code in codes]


def long_rows(data):
    """Rows of: sequence, step, label, split, features."""
    for index in range(len(data)):
        part = "" if data.split[index] < 0 else PARTS[data.split[index]]
        rows = zip(
            labels_of_steps(data, index), data.sequence(index).tolist(), strict=True
        )
        for step, (name, values) in enumerate(rows):
            yield [f"s{index}", step, name, part, *values]


HEADER = ("sequence", "step", "label", "split")


def write_csv(path, data):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*HEADER, *data.features])
        writer.writerows(long_rows(data))


def write_parquet(path, data):
    columns = dict(
        zip([*HEADER, *data.features], zip(*long_rows(data), strict=True), strict=True)
    )
    columns["split"] = [part or None for part in columns["split"]]
    columns["label"] = pyarrow.array(columns["label"]).dictionary_encode()
    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)


def write_npz(path, data):
    np.savez(
        path,
        x=data.frames,
        lengths=data.lengths,
        y=data.targets,
        classes=np.array(data.classes),
        split=data.split,
        extra=np.arange(3),
    )


WRITERS = {
    "jsonl": write_json_lines,
    "csv": write_csv,
    "parquet": write_parquet,
    "npz": write_npz,
}


def refused(path, content, **options):
    """The error message about a file of this content, without its path."""
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(readers.ReadError) as caught:
        readers.read(path, **options)
    assert caught.value.path == path
    return str(caught.value).removeprefix(str(path))
