"""Folds, and parts cut at random: balanced, and groups and copies undivided."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model.datasets import splits, stratify
from model.datasets.dataset import (
    TASKS,
    TEST,
    UNASSIGNED,
    VALIDATION,
    Dataset,
    default_features,
)


@st.composite
def datasets(draw, *, grouped=None, copies=True):
    """Small sets of either task, some with groups, and some with equal sequences."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(2, 60))
    classes = draw(st.integers(1, 5))
    task = draw(st.sampled_from(TASKS))
    lengths = rng.integers(1, 7, count)
    source = np.arange(count)
    if copies:
        source = np.where(
            rng.random(count) < 0.2, rng.integers(0, count, count), source
        )
    lengths = lengths[source]
    seeded = [np.random.default_rng(seed) for seed in source]
    frames = [r.normal(size=(t, 2)) for r, t in zip(seeded, lengths, strict=True)]
    targets = rng.integers(0, classes, count if task == "classify" else lengths.sum())
    groups = None
    if draw(st.booleans()) if grouped is None else grouped:
        names = rng.integers(0, draw(st.integers(1, 20)), count)
        groups = np.array([f"g{name}" for name in names], object)
    return Dataset(
        name="made",
        task=task,
        frames=np.concatenate(frames),
        lengths=lengths,
        targets=targets,
        classes=tuple("abcde"[:classes]),
        features=default_features(2),
        split=np.full(count, UNASSIGNED),
        groups=groups,
    )


def assert_undivided(data, places):
    """Sequences of one group, or with equal frames, are in one place."""
    named = data.ids if data.groups is None else data.groups
    frames = [data.sequence(index).tobytes() for index in range(len(data))]
    for keys in (named.tolist(), frames):
        pairs = set(zip(keys, places.tolist(), strict=True))
        assert len(pairs) == len(set(keys))


@given(datasets(), st.integers(2, 6), st.integers(0, 9))
def test_folds(data, count, seed):
    """Each sequence has one fold, no fold is empty, and groups and copies are undivided."""
    units = len(np.unique(stratify.units(data)))
    assume(units >= count)
    fold = splits.folds(data, count, seed)
    assert fold.shape == data.lengths.shape
    assert set(fold.tolist()) == set(range(count))
    assert_undivided(data, fold)
    np.testing.assert_array_equal(fold, splits.folds(data, count, seed))


@given(datasets(grouped=False, copies=False), st.integers(2, 6), st.integers(0, 9))
def test_folds_are_stratified(data, count, seed):
    """Without groups the sizes of folds hardly differ, and so do those of a class."""
    assume(len(data) >= count)
    fold = splits.folds(data, count, seed)
    places = [fold]
    if data.task == "classify":
        places += [fold[data.targets == code] for code in range(len(data.classes))]
    allowed = 1 if data.task == "classify" else 3  # A rare class may move a sequence.
    for part in places:
        sizes = np.bincount(part, minlength=count)
        assert sizes.max() - sizes.min() <= allowed


@given(datasets(grouped=False, copies=False), st.integers(2, 6), st.integers(0, 9))
def test_each_class_is_trained(data, count, seed):
    """A class of two sequences or more is always among those that are not tested."""
    assume(len(data) >= (count if data.task == "classify" else 15))
    fold = splits.folds(data, count, seed)
    contents = stratify.contents(data)
    for code in range(len(data.classes)):
        members = contents.owner[contents.classes == code]
        assert len(members) < 2 or len(np.unique(fold[members])) > 1


FRACTIONS = st.sampled_from([0.0, 0.1, 0.15, 0.3, 0.45])


@given(datasets(), FRACTIONS, FRACTIONS, st.integers(0, 9))
def test_parts(data, validation, test, seed):
    """Parts don't divide groups or copies, and training has all classes."""
    data = splits.assign_parts(data, validation=validation, test=test, seed=seed)
    assert_undivided(data, data.split)
    assert set(np.unique(data.part("train").targets)) == set(np.unique(data.targets))
    assert validation or not (data.split == VALIDATION).any()
    assert test or not (data.split == TEST).any()
    again = splits.assign_parts(
        replace(data, split=np.full(len(data), UNASSIGNED)),
        validation=validation,
        test=test,
        seed=seed,
    )
    assert again.digest == data.digest


@given(datasets(grouped=False, copies=False), FRACTIONS, FRACTIONS, st.integers(0, 9))
def test_parts_are_stratified(data, validation, test, seed):
    """To classify, each part has its share of each class, to within one sequence."""
    assume(data.task == "classify")
    data = splits.assign_parts(data, validation=validation, test=test, seed=seed)
    shares = {
        part: max(1, round(fraction * len(data))) / len(data) if fraction else 0
        for part, fraction in ((VALIDATION, validation), (TEST, test))
    }
    for part, share in shares.items():
        for code in range(len(data.classes)):
            members = data.targets == code
            count = (data.split[members] == part).sum()
            assert abs(count - share * members.sum()) < 1.01 + (members.sum() < 4)


def _make(targets, groups=None):
    count = len(targets)
    return Dataset(
        name="made",
        task="classify",
        frames=np.random.default_rng(0).normal(size=(count, 1)),
        lengths=np.ones(count, int),
        targets=np.asarray(targets),
        classes=("a", "b", "c"),
        features=("x",),
        split=np.full(count, UNASSIGNED),
        groups=groups,
    )


def test_classes_of_groups_are_trained():
    """A class of two groups is in two folds."""
    groups = np.repeat(np.arange(8), 3)
    data = _make([0, 1, 1, 0, 2, 2] + [1, 2, 1] * 6, groups)
    for seed in range(20):
        fold = splits.folds(data, 2, seed)
        assert fold[0] != fold[3]


def test_seeds_repeat_a_cross_validation():
    """Another seed gives other folds."""
    data = _make([0, 1, 2] * 20)
    first, second = splits.folds(data, 5, 0), splits.folds(data, 5, 1)
    assert (first != second).mean() > 0.5


def test_refusals():
    """More folds than groups, or than different sequences, are refused."""
    data = _make([0, 1] * 4)
    with pytest.raises(ValueError, match="9 folds of 8 different sequences: expected"):
        splits.folds(data, 9, 0)
    grouped = replace(data, groups=np.array(list("aabbccaa")))
    with pytest.raises(ValueError, match="4 folds of 3 groups: expected from 2 to 3"):
        splits.folds(grouped, 4, 0)
    equal = replace(data, frames=np.repeat(data.frames[:2], 4, 0))
    with pytest.raises(ValueError, match="3 folds of 2 different sequences"):
        splits.folds(equal, 3, 0)
    single = replace(data, groups=np.array(["a"] * 8))
    with pytest.raises(
        ValueError, match="all are of one group, so nothing can be said"
    ):
        splits.folds(single, 2, 0)


def test_few_groups_have_no_parts():
    """Under five groups there is neither a test nor a validation part, unless a fraction
    is given: a part of one group would say nothing about others."""
    for count in (2, 4, 5):
        data = _make(np.arange(600) % 7 % 3, np.arange(600) % count)
        split = splits.assign_parts(data).split
        assert set(split.tolist()) == ({0} if count < 5 else {0, 1, 2})
        assert 2 in splits.assign_parts(data, test=0.2).split
    data = _make([0, 1] * 300, np.arange(600) % 4)
    named = replace(data, split=np.where(np.arange(600) % 4 == 3, TEST, UNASSIGNED))
    split = splits.assign_parts(named).split  # the file's test part stays
    assert (np.bincount(split) == [450, 0, 150]).all()
