"""Split a data set into parts: keep those that the file names, cut the missing ones.

the file names            cut from                   in this order
nothing                   all sequences              test, validation
train (, validation)      train                      test (, validation)
train, test               train, never from test     validation
all three                 nothing
"""

from dataclasses import replace

import numpy as np

from model.datasets import stratify
from model.datasets.dataset import TEST, TRAIN, UNASSIGNED, VALIDATION, Dataset

LENGTH_STRATA = 10


def assign_parts(
    dataset: Dataset,
    *,
    validation: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
) -> Dataset:
    """Assign each sequence to a part: stratified, seeded, the same on every call.

    `validation` and `test` are fractions of the sequences that they are cut from; 0
    leaves the part out. Classes (classify) or lengths (label) are spread evenly over
    the parts, and training keeps at least one sequence with each class.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction}; expected at least 0, less than 1")
    named = set(np.unique(dataset.split).tolist()) - {UNASSIGNED}
    split = dataset.split.copy()
    # A file that names some parts means the rest for training.
    split[split == UNASSIGNED] = TRAIN
    pool = np.flatnonzero(split == TRAIN)
    if not len(pool):
        raise ValueError("no sequence is left for training")
    fractions = {
        part: fraction
        for part, fraction in ((TEST, test), (VALIDATION, validation))
        if part not in named
    }
    if sum(fractions.values()) >= 1:
        raise ValueError("validation and test leave nothing for training")
    rng = np.random.default_rng(seed)
    counts = {part: fraction * len(pool) for part, fraction in fractions.items()}
    for part, count in counts.items():
        chosen = _cut(_strata(dataset, pool), count, rng)
        split[pool[chosen]] = part
        pool = np.delete(pool, chosen)
    if dataset.task == "label":
        _return_classes(dataset, split, list(fractions))
    return replace(dataset, split=split)


def folds(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """Assign each sequence to a fold from 0 to count - 1, [N]: the same on every call.

    Classes and sizes are spread evenly over the folds, for labelling the rarest class of
    each sequence. A group is never in two folds, nor are equal sequences. A class that
    occurs in two groups or more is in two folds at least, if a group can be moved for
    that, so that there is always one to train on. Another seed gives another repetition.

    Raises:
        ValueError: there are fewer groups, or different sequences, than folds.
    """
    unit = stratify.units(dataset)
    size = int(unit.max(initial=-1)) + 1
    if not 2 <= count <= size:
        kind = "different sequences" if dataset.groups is None else "groups"
        raise ValueError(f"{count} folds of {size} {kind}: expected from 2 to {size}")
    rng = np.random.default_rng(seed)
    fold = stratify.deal(dataset, unit, np.full(count, 1 / count), rng)
    _spread_classes(dataset, unit, fold)
    return fold


def _spread_classes(dataset: Dataset, unit: np.ndarray, fold: np.ndarray) -> None:
    """Move units so that a class that occurs in two of them is in two folds."""
    owner, classes, _ = stratify.occurrences(dataset)
    pairs = np.unique(np.stack([classes, unit[owner]], 1), axis=0)
    of_unit = np.zeros(int(unit.max()) + 1, np.int64)
    of_unit[unit] = fold
    sizes = np.bincount(unit)

    def lost() -> set[int]:
        """Classes of two units or more that are in one fold only."""
        places = np.unique(np.stack([pairs[:, 0], of_unit[pairs[:, 1]]], 1), axis=0)
        spread = np.bincount(places[:, 0], minlength=len(dataset.classes))
        known = np.bincount(pairs[:, 0], minlength=len(dataset.classes))
        return set(np.flatnonzero((known > 1) & (spread == 1)).tolist())

    missing = lost()
    for code in sorted(missing):
        members = pairs[pairs[:, 0] == code, 1]
        for index in members[np.argsort(sizes[members], kind="stable")].tolist():
            source = of_unit[index]
            if code not in missing:
                break
            if (of_unit == source).sum() == 1:  # A fold is never empty.
                continue
            loads = np.bincount(of_unit, sizes)
            loads[source] = np.inf
            of_unit[index] = loads.argmin()
            if len(now := lost()) < len(missing):
                missing = now
            else:
                of_unit[index] = source
    fold[:] = of_unit[unit]


def _return_classes(dataset: Dataset, split: np.ndarray, parts: list[int]) -> None:
    """Return sequences from these parts to training until it has all of their classes."""
    known = np.zeros(len(dataset.classes), bool)
    known[dataset.targets[np.repeat(split == TRAIN, dataset.lengths)]] = True
    for index in np.flatnonzero(np.isin(split, parts)).tolist():
        codes = dataset.target(index)
        if not known[codes].all():
            split[index] = TRAIN
            known[codes] = True


def _strata(dataset: Dataset, pool: np.ndarray) -> np.ndarray:
    """Return each sequence's stratum: its class, or the quantile of its length."""
    if dataset.task == "classify":
        return dataset.targets[pool]
    order = np.argsort(dataset.lengths[pool], kind="stable")
    rank = np.empty(len(pool), np.int64)
    rank[order] = np.arange(len(pool))
    strata = min(LENGTH_STRATA, max(1, len(pool) // LENGTH_STRATA))
    return rank * strata // len(pool)


def _cut(strata: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """Choose about `count` indices, spread over the strata in proportion."""
    if not count:
        return np.zeros(0, np.int64)
    _, strata, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    quota = _quota(sizes, count, rng)
    shuffled = rng.permutation(len(strata))
    chosen = [
        shuffled[strata[shuffled] == stratum][:share]
        for stratum, share in enumerate(quota)
    ]
    return np.sort(np.concatenate(chosen))


def _quota(sizes: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """Divide `count` in proportion to the sizes, by largest remainder.

    One entry of each stratum is left for training.
    """
    total = max(1, round(count))
    exact = sizes * (count / sizes.sum())
    limit = sizes - 1
    quota = np.minimum(exact.astype(np.int64), limit)
    # Ties are broken at random: in file order the same small classes would always lose.
    lot = rng.permutation(len(sizes))
    for stratum in lot[np.argsort((quota - exact)[lot], kind="stable")]:
        if quota.sum() < total and quota[stratum] < limit[stratum]:
            quota[stratum] += 1
    return quota
