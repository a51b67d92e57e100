"""Deal sequences into bins (parts or folds): each class in proportion, groups undivided.

A unit is what stays together: a group, its exact duplicates, and their groups. First come
the units of several sequences, the largest first, each to the bin that most lacks its
classes (for labelling: their steps). Then come the single sequences, stratum by stratum,
to the bins that lack the stratum; within it, short and long sequences are spread alike. A
sequence's stratum is its class, or for labelling its rarest class, as in "On the
Stratification of Multi-Label Data" (Sechidis et al., 2011).
"""

import numpy as np

from model.datasets import duplicates
from model.datasets.dataset import Dataset


def units(dataset: Dataset) -> np.ndarray:
    """Number what stays together, from 0: equal sequences, and those of a group, [N]."""
    links = [np.unique(duplicates.hashes(dataset), return_inverse=True)[1]]
    if dataset.groups is not None:
        links.append(np.unique(dataset.groups, return_inverse=True)[1])
    lowest = np.arange(len(dataset))
    while True:  # Until linked sequences have the same lowest number; it only falls.
        before = lowest
        for codes in links:
            first = np.full(len(dataset), len(dataset))
            np.minimum.at(first, codes, lowest)
            lowest = first[codes]
        if np.array_equal(lowest, before):
            return np.unique(lowest, return_inverse=True)[1]


def occurrences(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each class of each sequence once: the sequence, the class, and how often.

    To classify, a class occurs once in a sequence; to label, in a number of its steps.
    """
    if dataset.task == "classify":
        every = np.arange(len(dataset))
        return every, dataset.targets.astype(np.int64), np.ones(len(dataset), np.int64)
    owner = np.repeat(np.arange(len(dataset)), dataset.lengths)
    size = len(dataset.classes)
    keys, counts = np.unique(owner * size + dataset.targets, return_counts=True)
    return keys // size, keys % size, counts


def deal(
    dataset: Dataset,
    unit: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
    required: int | None = None,
) -> np.ndarray:
    """Return the bin of each sequence, [N], so that bin b gets about shares[b] of them.

    Args:
        unit: [N], of `units`.
        shares: [B], which add up to 1; a bin with share 0 stays empty.
        required: a bin that should have every class, whatever its share.
    """
    bins = np.full(len(dataset), -1)
    sizes = np.bincount(unit)
    if (sizes > 1).any():
        _deal_units(dataset, unit, sizes, shares, rng, bins)
    _deal_sequences(dataset, shares, rng, bins, required)
    return bins


def _deal_units(
    dataset: Dataset,
    unit: np.ndarray,
    sizes: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
    bins: np.ndarray,
) -> None:
    """Deal the units of several sequences into the bins that most lack their classes."""
    count = len(dataset.classes)
    owner, classes, amounts = occurrences(dataset)
    keys, place = np.unique(unit[owner] * count + classes, return_inverse=True)
    totals = np.bincount(classes, amounts, minlength=count)
    classes = keys % count
    # Each unit's share of the whole class.
    parts = np.bincount(place, amounts) / totals[classes]
    starts = np.searchsorted(keys // count, np.arange(len(sizes) + 1))
    # How much of a class, and of all sequences, a bin has above its share.
    excess = np.tile(-shares, (count, 1))
    surplus = -shares.copy()
    chosen = np.full(len(sizes), -1)
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    empty = shares > 0
    for done, index in enumerate(order[sizes[order] > 1].tolist()):
        mine = slice(starts[index], starts[index + 1])
        size = sizes[index] / len(dataset)
        score = parts[mine] @ excess[classes[mine]] + size * surplus
        # Every bin gets a unit if there are enough.
        last = len(sizes) - done <= empty.sum()
        score[~empty if last else shares <= 0] = np.inf
        best = int(np.lexsort((rng.random(len(score)), score))[0])
        chosen[index] = best
        excess[classes[mine], best] += parts[mine]
        surplus[best] += size
        empty[best] = False
    bins[:] = chosen[unit]


def _deal_sequences(
    dataset: Dataset,
    shares: np.ndarray,
    rng: np.random.Generator,
    bins: np.ndarray,
    required: int | None,
) -> None:
    """Deal the sequences without a bin, stratum by stratum."""
    strata = _strata(dataset)
    order = np.argsort(strata, kind="stable")
    starts = np.flatnonzero(np.diff(strata[order], prepend=-1))
    of_stratum = np.split(order, starts[1:])
    placed = bins[bins >= 0]
    surplus = np.bincount(placed, minlength=len(shares)) - shares * len(placed)
    for number in rng.permutation(len(of_stratum)).tolist():
        members = of_stratum[number]
        dealt = bins[members]
        placed = np.bincount(dealt[dealt >= 0], minlength=len(shares))
        rest = members[dealt < 0]
        lack = shares * len(members) - placed
        counts = _apportion(lack, len(rest), surplus, rng)
        if required is not None and len(rest) and not (placed + counts)[required]:
            counts[counts.argmax()] -= 1
            counts[required] += 1
        surplus += counts - shares * len(rest)
        # By length, with a place for each bin at random in every one of its quantiles.
        rest = rest[np.lexsort((rng.random(len(rest)), dataset.lengths[rest]))]
        codes = np.repeat(np.arange(len(shares)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        bins[rest] = codes[np.argsort((ranks + rng.random(len(rest))) / counts[codes])]


def _strata(dataset: Dataset) -> np.ndarray:
    """Return each sequence's class, or its rarest one by sequences, [N]."""
    owner, classes, _ = occurrences(dataset)
    by_rarity = np.argsort(np.bincount(classes, minlength=len(dataset.classes)))
    ranks = np.argsort(by_rarity)[classes]
    starts = np.searchsorted(owner, np.arange(len(dataset)))
    return by_rarity[np.minimum.reduceat(ranks, starts)]


def _apportion(
    lack: np.ndarray, count: int, surplus: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Divide `count` sequences over the bins by what they lack, each rounded, [B].

    The bins with the least surplus of other strata are rounded up.
    """
    exact = np.maximum(lack, 0)
    exact *= count / max(exact.sum(), 1e-9)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    ties = rng.random(len(lack))
    order = np.lexsort((ties, np.round(surplus - exact + counts, 9)))
    order = order[(exact - counts)[order] > 1e-9]
    counts[order[: count - counts.sum()]] += 1
    return counts
