"""Deal sequences into bins (parts or folds): each class in proportion, groups undivided.

A unit is what stays together: a group, its exact duplicates, and their groups. First come
the units of several sequences, the largest first, each to the bin that most lacks its
classes (for labelling: their steps). Then come the single sequences, stratum by stratum,
to the bins that lack the stratum; within it, short and long sequences are spread alike. A
sequence's stratum is its class, or for labelling its rarest class, as in "On the
Stratification of Multi-Label Data" (Sechidis et al., 2011).
"""

from dataclasses import dataclass

import numpy as np

from model.datasets.dataset import Dataset

CELLS = 2**22  # numbers in a table of sequences by classes


@dataclass(frozen=True, slots=True)
class Contents:
    """The classes of N sequences: each class of each sequence is one of K entries.

    Attributes:
        owner: the sequence of each entry, in order, [K].
        classes: its class, [K].
        counts: how often it occurs: 1 to classify, a number of steps to label, [K].
        lengths: the steps of each sequence, [N].
        size: the number of all classes.
    """

    owner: np.ndarray
    classes: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    size: int

    def take(self, indices: np.ndarray) -> "Contents":
        """Return the sequences at these rising indices."""
        place = np.full(len(self.lengths), -1)
        place[indices] = np.arange(len(indices))
        owner = place[self.owner]
        rows = owner >= 0
        return Contents(
            owner[rows],
            self.classes[rows],
            self.counts[rows],
            self.lengths[indices],
            self.size,
        )


def contents(dataset: Dataset) -> Contents:
    """Count the classes of each sequence."""
    size, lengths = len(dataset.classes), dataset.lengths
    if dataset.task == "classify":
        every = np.arange(len(dataset))
        classes = dataset.targets.astype(np.int64)
        return Contents(every, classes, np.ones_like(every), lengths, size)
    entries = []
    block = max(1, CELLS // size)
    for start in range(0, len(dataset), block):
        count = len(lengths[start : start + block])
        steps = slice(dataset.offsets[start], dataset.offsets[start + count])
        owner = np.repeat(np.arange(count), lengths[start : start + count])
        cells = owner * size + dataset.targets[steps]
        table = np.bincount(cells, minlength=count * size).reshape(count, size)
        rows, classes = np.nonzero(table)
        entries.append((rows + start, classes, table[rows, classes]))
    owner, classes, counts = map(np.concatenate, zip(*entries, strict=True))
    return Contents(owner, classes, counts, lengths, size)


def units(dataset: Dataset) -> np.ndarray:
    """Number what stays together, from 0: equal sequences, and those of a group, [N]."""
    links = [np.unique(dataset.hashes, return_inverse=True)[1]]
    if dataset.groups is not None:
        known: dict[object, int] = {}
        names = dataset.groups.tolist()
        links.append(np.array([known.setdefault(name, len(known)) for name in names]))
    lowest = np.arange(len(dataset))
    while True:  # Until linked sequences have the same lowest number; it only falls.
        before = lowest
        for codes in links:
            first = np.full(len(dataset), len(dataset))
            np.minimum.at(first, codes, lowest)
            lowest = first[codes]
        if np.array_equal(lowest, before):
            first_of_unit = lowest == np.arange(len(dataset))
            return (np.cumsum(first_of_unit) - 1)[lowest]


def deal(
    sequences: Contents,
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
    bins = np.full(len(unit), -1)
    if np.bincount(unit).max(initial=0) > 1:
        _deal_units(sequences, unit, shares, rng, bins)
    _deal_sequences(sequences, shares, rng, bins, required)
    return bins


def _deal_units(
    sequences: Contents,
    unit: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
    bins: np.ndarray,
) -> None:
    """Deal the units of several sequences into the bins that most lack their classes."""
    _, unit, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    count = sequences.size
    cells = unit[sequences.owner] * count + sequences.classes
    cells, place = np.unique(cells, return_inverse=True)
    classes = cells % count
    totals = np.bincount(sequences.classes, sequences.counts, minlength=count)
    # Each unit's share of the whole class.
    parts = np.bincount(place, sequences.counts) / totals[classes]
    starts = np.searchsorted(cells // count, np.arange(len(sizes) + 1))
    # How much of a class, and of all sequences, a bin has above its share.
    excess = np.tile(-shares, (count, 1))
    surplus = -shares
    chosen = np.full(len(sizes), -1)
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    empty = shares > 0
    for done, index in enumerate(order[sizes[order] > 1].tolist()):
        mine = slice(starts[index], starts[index + 1])
        size = sizes[index] / len(unit)
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
    sequences: Contents,
    shares: np.ndarray,
    rng: np.random.Generator,
    bins: np.ndarray,
    required: int | None,
) -> None:
    """Deal the sequences without a bin, stratum by stratum."""
    strata = _strata(sequences)
    order = np.argsort(strata, kind="stable")
    starts = np.flatnonzero(np.diff(strata[order], prepend=-1))
    of_stratum = np.split(order, starts[1:])
    sizes = np.array([len(members) for members in of_stratum])
    placed = bins[bins >= 0]
    surplus = np.bincount(placed, minlength=len(shares)) - shares * len(placed)
    # Small ones first: larger ones make up for what they round.
    for number in np.lexsort((rng.random(len(sizes)), sizes)).tolist():
        members = of_stratum[number]
        dealt = bins[members]
        placed = np.bincount(dealt[dealt >= 0], minlength=len(shares))
        rest = members[dealt < 0]
        counts = _apportion(shares * len(members) - placed, len(rest), surplus, rng)
        if required is not None and len(rest) and not (placed + counts)[required]:
            counts[counts.argmax()] -= 1
            counts[required] += 1
        surplus += counts - shares * len(rest)
        bins[_by_length(rest, sequences, shares, rng)] = _interleave(counts)


def _by_length(
    members: np.ndarray,
    sequences: Contents,
    shares: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sort sequences by length, but shuffle each block of which all bins get one."""
    ties = rng.random(len(members))
    ordered = members[np.lexsort((ties, sequences.lengths[members]))]
    block = np.arange(len(members)) // round(1 / shares[shares > 0].min())
    return ordered[np.lexsort((rng.random(len(members)), block))]


def _interleave(counts: np.ndarray) -> np.ndarray:
    """Return each bin so many times, evenly spread: [2, 4] gives 1 0 1 1 0 1."""
    bins = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])
    return bins[np.argsort((ranks + 0.5) / counts[bins], kind="stable")]


def _strata(sequences: Contents) -> np.ndarray:
    """Return each sequence's class, or its rarest one by sequences, [N]."""
    frequency = np.bincount(sequences.classes, minlength=sequences.size)
    by_rarity = np.argsort(frequency, kind="stable")
    ranks = np.argsort(by_rarity)[sequences.classes]
    starts = np.searchsorted(sequences.owner, np.arange(len(sequences.lengths)))
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
