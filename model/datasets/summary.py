"""Summarise a data set before training: sizes, lengths, classes, and features."""

from dataclasses import dataclass

import numpy as np

from model.datasets.dataset import PARTS, Dataset


@dataclass(frozen=True, slots=True)
class Part:
    """The sizes of a part."""

    sequences: int
    steps: int
    lengths: tuple[int, int, int] | None  # shortest, median, longest; None: no sequence
    groups: int | None  # None: unknown


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers about a data set with C classes and F features.

    Attributes:
        parts: the sizes of train, validation, test, and "all".
        counts: [C, 3], sequences (classify) or steps (label) of each class and part.
        minimum, mean, maximum: [F], over all parts.
    """

    parts: dict[str, Part]
    counts: np.ndarray
    minimum: np.ndarray
    mean: np.ndarray
    maximum: np.ndarray


def summarise(dataset: Dataset) -> Summary:
    """Return the numbers of a data set; sequences without a part count as "all" only."""
    masks = {name: dataset.split == code for code, name in enumerate(PARTS)}
    masks["all"] = np.ones(len(dataset), bool)
    columns = map(by_feature, dataset.blocks())
    blocks = [(c.min(1), c.sum(1, dtype=np.float64), c.max(1)) for c in columns]
    minima, sums, maxima = map(np.stack, zip(*blocks, strict=True))
    return Summary(
        parts={name: _part(dataset, mask) for name, mask in masks.items()},
        counts=count_classes(dataset),
        minimum=minima.min(0),
        mean=sums.sum(0) / dataset.offsets[-1],
        maximum=maxima.max(0),
    )


def by_feature(block: np.ndarray) -> np.ndarray:
    """Return a block of frames [R, F] as [F, R]: NumPy is faster along its rows."""
    return np.ascontiguousarray(block.T)


def count_classes(dataset: Dataset) -> np.ndarray:
    """Return how many sequences (classify) or steps (label) are of each class, [C, 3]."""
    split = dataset.split
    if dataset.task == "label":
        split = np.repeat(split, dataset.lengths)
    size = len(dataset.classes)
    counts = [
        np.bincount(dataset.targets[split == code], minlength=size)
        for code in range(len(PARTS))
    ]
    return np.stack(counts, 1)


def _part(dataset: Dataset, mask: np.ndarray) -> Part:
    lengths, groups = dataset.lengths[mask], None
    if dataset.groups is not None:
        groups = len(set(dataset.groups[mask].tolist()))
    sizes = None
    if len(lengths):
        sizes = (int(lengths.min()), int(np.median(lengths)), int(lengths.max()))
    return Part(len(lengths), int(lengths.sum(dtype=np.int64)), sizes, groups)
