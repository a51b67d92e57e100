"""Split a data set into parts: keep those that the file names, cut the missing ones.

the file names            cut from                   in this order
nothing                   all sequences              test, validation
train (, validation)      train                      test (, validation)
train, test               train, never from test     validation
all three                 nothing

Of a few groups a part would hold one or two, which say little about others: they are
cross-validated, and each group is left out once.
"""

import numpy as np

from model.datasets import stratify
from model.datasets.dataset import PARTS, TEST, TRAIN, UNASSIGNED, VALIDATION, Dataset
from model.datasets.stratify import Contents

VALIDATION_FRACTION = TEST_FRACTION = 0.15
FEW_GROUPS = 5  # fewer are cross-validated in place of both parts
FEW = 500  # sequences: fewer are cross-validated in place of a validation part


def assign_parts(
    dataset: Dataset,
    *,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Assign each sequence to a part: stratified, seeded, the same on every call.

    `validation` and `test` are fractions of the sequences that they are cut from; 0
    leaves the part out. By default there is no validation part under 500 sequences, and
    neither part under five groups.
    Classes (to label, the rarest class of each sequence) and lengths are spread evenly
    over the parts, and training keeps at least one sequence with each class. A group is
    never cut into two parts, nor are equal sequences.
    """
    pool = dataset.take(dataset.split != TEST)
    few_groups = pool.groups is not None and count_units(pool) < FEW_GROUPS
    if validation is None:
        few = few_groups or len(pool) < FEW
        validation = 0 if few else VALIDATION_FRACTION
    if test is None:
        test = 0 if few_groups else TEST_FRACTION
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction}; expected at least 0, less than 1")
    named = set(np.unique(dataset.split).tolist()) - {UNASSIGNED}
    split = dataset.split.copy()
    # A file that names some parts means the rest for training.
    split[split == UNASSIGNED] = TRAIN
    members = np.flatnonzero(split == TRAIN)
    if not len(members):
        raise ValueError("no sequence is left for training")
    fractions = {
        part: fraction
        for part, fraction in ((TEST, test), (VALIDATION, validation))
        if part not in named
    }
    if sum(fractions.values()) >= 1:
        raise ValueError("validation and test leave nothing for training")
    if any(fractions.values()):
        unit = stratify.units(dataset)[members]
        sequences = stratify.contents(dataset).take(members)
        split[members] = _cut(sequences, unit, fractions, seed)
    return dataset.with_split(split)


def count_units(dataset: Dataset) -> int:
    """Return how many units can be divided: groups, or different sequences."""
    return int(stratify.units(dataset).max(initial=-1)) + 1


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
    if size == 1 and dataset.groups is not None:
        raise ValueError(
            "all are of one group, so nothing can be said about others: add groups, or"
            " leave out the column of groups"
        )
    if not 2 <= count <= size:
        kind = "different sequences" if dataset.groups is None else "groups"
        raise ValueError(f"{count} folds of {size} {kind}: expected from 2 to {size}")
    sequences = stratify.contents(dataset)
    rng = np.random.default_rng(seed)
    fold = stratify.deal(sequences, unit, np.full(count, 1 / count), rng)
    _spread_classes(sequences, unit, fold)
    return fold


def _spread_classes(sequences: Contents, unit: np.ndarray, fold: np.ndarray) -> None:
    """Move units so that a class that occurs in two of them is in two folds."""
    pairs = np.stack([sequences.classes, unit[sequences.owner]], 1)
    pairs = np.unique(pairs, axis=0)
    of_unit = np.zeros(int(unit.max()) + 1, np.int64)
    of_unit[unit] = fold
    sizes = np.bincount(unit)
    known = np.bincount(pairs[:, 0], minlength=sequences.size)

    def lost() -> set[int]:
        """Classes of two units or more that are in one fold only."""
        places = np.stack([pairs[:, 0], of_unit[pairs[:, 1]]], 1)
        spread = np.bincount(np.unique(places, axis=0)[:, 0], minlength=sequences.size)
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


def _cut(
    sequences: Contents, unit: np.ndarray, fractions: dict[int, float], seed: int
) -> np.ndarray:
    """Return the part of each sequence, [N]; training gets the rest."""
    count = len(unit)
    shares = np.zeros(len(PARTS))
    for part, fraction in fractions.items():
        shares[part] = max(1, round(fraction * count)) if fraction else 0
    shares[TRAIN] = max(0, count - shares.sum())
    rng = np.random.default_rng(seed)
    split = stratify.deal(sequences, unit, shares / shares.sum(), rng, required=TRAIN)
    _return_classes(sequences, unit, split)
    return split


def _return_classes(sequences: Contents, unit: np.ndarray, split: np.ndarray) -> None:
    """Return units to training, the smallest ones, until it has all classes."""
    owner, classes = sequences.owner, sequences.classes
    sizes = np.bincount(unit)
    lost = np.setdiff1d(classes, classes[split[owner] == TRAIN])
    for code in lost.tolist():
        members = owner[classes == code]
        if (split[members] != TRAIN).all():
            smallest = members[sizes[unit[members]].argmin()]
            split[unit == unit[smallest]] = TRAIN
