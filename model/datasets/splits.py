"""Parts of a dataset: what the file names stays, what is missing is cut.

the file names            cut from                   in this order
nothing                   all sequences              test, validation
train (, validation)      train                      test (, validation)
train, test               train, never from test     validation
all three                 nothing
"""

from dataclasses import replace

import numpy as np

from model.datasets import dataset as sets

LENGTH_STRATA = 10


def assign(
    dataset: sets.Dataset,
    *,
    validation: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
) -> sets.Dataset:
    """Give each sequence a part: stratified, seeded, the same on every call.

    `validation` and `test` are fractions of the sequences that they are cut from;
    0 leaves the part out. Classes (classify) or lengths (label) are spread evenly,
    and every class keeps a sequence in the training part.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction}; expected at least 0, less than 1")
    given = set(np.unique(dataset.split).tolist()) - {sets.UNASSIGNED}
    split = dataset.split.copy()
    # A file that names some parts means the rest for training.
    split[split == sets.UNASSIGNED] = sets.TRAIN
    pool = np.flatnonzero(split == sets.TRAIN)
    if not len(pool):
        raise ValueError("no sequence is left for training")
    wanted = {
        part: fraction
        for part, fraction in ((sets.TEST, test), (sets.VALIDATION, validation))
        if part not in given
    }
    if sum(wanted.values()) >= 1:
        raise ValueError("validation and test leave nothing for training")
    rng = np.random.default_rng(seed)
    counts = {part: fraction * len(pool) for part, fraction in wanted.items()}
    for part, count in counts.items():
        chosen = _cut(_strata(dataset, pool), count, rng)
        split[pool[chosen]] = part
        pool = np.delete(pool, chosen)
    return replace(dataset, split=split)


def _strata(dataset: sets.Dataset, pool: np.ndarray) -> np.ndarray:
    """A stratum for each sequence of the pool: its class, or its length's quantile."""
    if dataset.task == "classify":
        return dataset.targets[pool]
    order = np.argsort(dataset.lengths[pool], kind="stable")
    rank = np.empty(len(pool), np.int64)
    rank[order] = np.arange(len(pool))
    strata = min(LENGTH_STRATA, max(1, len(pool) // LENGTH_STRATA))
    return rank * strata // len(pool)


def _cut(strata: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `count` entries, shared out over the strata."""
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
    """Share out `count` in proportion to the sizes, by largest remainder.

    Each stratum keeps one entry back, so that training sees every class.
    """
    total = max(1, round(count))
    exact = sizes * (count / sizes.sum())
    limit = sizes - 1
    quota = np.minimum(exact.astype(np.int64), limit)
    # Ties go by lot: in file order the same small classes would always lose.
    lot = rng.permutation(len(sizes))
    for stratum in lot[np.argsort((quota - exact)[lot], kind="stable")]:
        if quota.sum() < total and quota[stratum] < limit[stratum]:
            quota[stratum] += 1
    return quota
