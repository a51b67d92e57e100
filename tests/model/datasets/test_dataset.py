"""The dataset as a value, and how it is split."""

from dataclasses import replace

import numpy as np
import pytest

from model.datasets import splits
from model.datasets.dataset import (
    PARTS,
    TASKS,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Dataset,
    concatenate,
    default_features,
    join_names,
)


def make(task="classify", *, count=30, classes=3, features=2, split=None, seed=0):
    """A random set of ragged sequences; classes take turns."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, count)
    steps = int(lengths.sum())
    return Dataset(
        name="made",
        task=task,
        frames=rng.normal(size=(steps, features)),
        lengths=lengths,
        targets=np.arange(count if task == "classify" else steps) % classes,
        classes=tuple("abcdefgh"[:classes]),
        features=default_features(features),
        split=np.full(count, UNASSIGNED) if split is None else np.asarray(split),
    )


def assert_equal(left, right):
    for name in ("frames", "lengths", "targets", "split", "offsets"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype
    assert (left.task, left.classes) == (right.task, right.classes)
    assert left.features == right.features


@pytest.mark.parametrize("task", TASKS)
class TestValue:
    def test_types(self, task):
        """Arrays have the types that are promised, whatever they were made from."""
        data = make(task)
        assert data.frames.dtype == np.float32
        assert data.lengths.dtype == data.targets.dtype == np.int32
        assert data.split.dtype == np.int8
        assert data.offsets.dtype == np.int64

    def test_sequences_join_to_all(self, task):
        """The sequences, joined, are all frames and all targets."""
        data = make(task)
        sequences = [data.sequence(index) for index in range(len(data))]
        targets = [np.atleast_1d(data.target(index)) for index in range(len(data))]
        assert [len(sequence) for sequence in sequences] == data.lengths.tolist()
        np.testing.assert_array_equal(np.concatenate(sequences), data.frames)
        np.testing.assert_array_equal(np.concatenate(targets), data.targets)

    def test_negative_index(self, task):
        """Index -1 is the last sequence, and past the end is an IndexError."""
        data = make(task)
        last = len(data) - 1
        np.testing.assert_array_equal(data.sequence(-1), data.sequence(last))
        np.testing.assert_array_equal(data.target(-1), data.target(last))
        with pytest.raises(IndexError):
            data.sequence(len(data))

    def test_take(self, task):
        """Take gives just the sequences asked for, in that order, even twice."""
        data = make(task)
        chosen = [7, 0, 7, -1]
        taken = data.take(chosen)
        assert len(taken) == 4
        for place, index in enumerate(chosen):
            np.testing.assert_array_equal(taken.sequence(place), data.sequence(index))
            np.testing.assert_array_equal(taken.target(place), data.target(index))

    def test_take_mask(self, task):
        """A mask takes what its indices take."""
        data = make(task)
        mask = data.lengths > 3
        assert_equal(data.take(mask), data.take(np.flatnonzero(mask)))
        with pytest.raises(ValueError, match="mask"):
            data.take(mask[1:])

    def test_take_nothing(self, task):
        """An empty choice is an empty set that keeps its classes and features."""
        nothing = make(task).take([])
        assert len(nothing) == len(nothing.frames) == len(nothing.targets) == 0
        assert nothing.classes == ("a", "b", "c")
        assert len(nothing.digest) == 64

    def test_digest_ignores_name(self, task):
        """Equal content has an equal digest under any name and byte order."""
        data = make(task)
        other = replace(data, name="else", frames=data.frames.astype(">f4"))
        assert data.digest == other.digest

    def test_digest_sees_all(self, task):
        """Any change of content changes the digest."""
        data = make(task)
        frames, targets = data.frames.copy(), data.targets.copy()
        frames[-1, -1] += 1
        targets[0] = 2
        others = [
            replace(data, frames=frames),
            replace(data, targets=targets),
            replace(data, lengths=data.lengths[::-1]),
            replace(data, split=np.zeros(len(data), int)),
            replace(data, classes=("a", "b", "d")),
            replace(data, features=("x0", "y")),
        ]
        assert len({data.digest, *(other.digest for other in others)}) == 7

    def test_reclass(self, task):
        """Another order of classes changes the numbers and not the names."""
        data = make(task)
        other = data.map_classes(("c", "z", "b", "a"))
        before = [data.classes[code] for code in data.targets]
        assert [other.classes[code] for code in other.targets] == before

    def test_concatenate(self, task):
        """Two sets become one, in order, with the classes of the first; another class in
        the second is refused."""
        left, right = make(task, classes=3), make(task, classes=2, seed=1)
        both = concatenate(left, right, "both")
        assert both.classes == ("a", "b", "c")
        size = len(left)
        assert_equal(both.take(np.arange(size)), left)
        rest = both.take(np.arange(size, len(both)))
        assert_equal(rest, right.map_classes(both.classes))
        with pytest.raises(
            ValueError, match="no sequence for training has the class c"
        ):
            concatenate(right, left, "both")


def test_refusals():
    """Inconsistent arrays are refused with the reason."""
    for change, reason in (
        ({"task": "regress"}, "task is 'regress'"),
        ({"frames": np.zeros(5)}, "frames has 1 dim"),
        ({"frames": np.zeros((4, 2))}, "but there are 4 frames"),
        ({"frames": np.full((5, 2), np.nan)}, "finite numbers"),
        ({"frames": np.full((5, 2), 1e39)}, "fit float32"),
        ({"frames": np.full((5, 2), "1")}, "frames cannot be <U1"),
        ({"lengths": [5, 0]}, "at least one step"),
        ({"lengths": [2.0, 3.0]}, "lengths cannot be"),
        ({"lengths": [2, 2**32 + 3]}, "does not fit"),
        ({"targets": [0]}, "1 targets; task classify needs 2"),
        ({"targets": [0, 3]}, "outside the 2 classes"),
        ({"targets": [-1, 0]}, "outside the 2 classes"),
        ({"task": "label"}, "task label needs 5"),
        ({"split": [0]}, "split needs one entry for each"),
        ({"split": [0, 3]}, "split holds"),
        ({"classes": ("a", "a")}, "is repeated"),
        ({"classes": ("a", "")}, "non-empty"),
        ({"features": ("x",)}, "1 feature names for 2"),
    ):
        valid = {
            "name": "made",
            "task": "classify",
            "frames": np.zeros((5, 2)),
            "lengths": [2, 3],
            "targets": [0, 1],
            "classes": ("a", "b"),
            "features": ("x", "y"),
            "split": [0, 1],
        }
        Dataset(**valid)
        with pytest.raises(ValueError, match=reason):
            Dataset(**{**valid, **change})


def test_part_and_reclass_refusals():
    """An unknown part and a class that would be lost are named."""
    data = make()
    with pytest.raises(ValueError, match="no part 'tset'; there are train"):
        data.part("tset")
    with pytest.raises(
        ValueError, match="not among the classes: c; the classes are a, b"
    ):
        data.map_classes(("a", "b"))


def test_concatenate_refusals():
    """Sets that do not belong together are not united."""
    for change, reason in (
        ({"task": "label"}, "tasks differ"),
        ({"features": 3}, "feature counts differ: 2 and 3"),
        ({"named": ("v", "u")}, "features differ: u, v"),
        (
            {"renamed": ("a", "y", "z")},
            "has the class y, z; those that occur are a, b, c",
        ),
    ):
        named, renamed = change.pop("named", None), change.pop("renamed", None)
        other = make(**{"task": "classify", **change})
        other = replace(other, features=named or other.features)
        other = replace(other, classes=renamed or other.classes)
        with pytest.raises(ValueError, match=reason):
            concatenate(replace(make(), features=("u", "v")), other, "both")


def test_concatenate_keeps_names():
    """Feature names that only one of two sets has are kept."""
    plain, named = make(), replace(make(), features=("u", "v"))
    assert concatenate(plain, named, "both").features == ("u", "v")
    assert concatenate(named, plain, "both").features == ("u", "v")


def sizes(data):
    return [int((data.split == part).sum()) for part in range(3)]


class TestSplits:
    @pytest.mark.parametrize("task", TASKS)
    def test_nothing_given(self, task):
        """Without parts in the file all three are made, in proportion, disjoint."""
        data = splits.assign_parts(make(task, count=200), validation=0.15)
        assert sizes(data) == [140, 30, 30]
        assert sum(len(data.part(name)) for name in PARTS) == 200

    @pytest.mark.parametrize("task", TASKS)
    def test_deterministic(self, task):
        """The same seed gives the same parts, another seed others."""
        data = make(task, count=100)
        same, again = (
            splits.assign_parts(data, seed=3),
            splits.assign_parts(data, seed=3),
        )
        assert same.digest == again.digest
        assert same.digest != splits.assign_parts(data, seed=4).digest

    def test_stratified_by_class(self):
        """Each part has each class in proportion, to within one sequence."""
        data = make(count=203, classes=5)
        data = splits.assign_parts(data, validation=0.2, test=0.1, seed=1)
        total = np.bincount(data.targets)
        for name, fraction in (("validation", 0.2), ("test", 0.1)):
            counts = np.bincount(data.part(name).targets, minlength=5)
            assert (np.abs(counts - fraction * total) < 1.01).all()

    def test_stratified_by_length(self):
        """Each part of a labelling set has short and long sequences alike."""
        data = splits.assign_parts(make("label", count=400), validation=0.2, test=0.2)
        expected = 0.2 * np.bincount(data.lengths)
        for part in (VALIDATION, TEST):
            counts = np.bincount(data.lengths[data.split == part], minlength=9)
            assert (np.abs(counts - expected) <= 3).all()

    def test_each_class_is_trained(self):
        """Every class keeps a sequence for training, however rare it is."""
        for seed in range(20):
            rng = np.random.default_rng(seed)
            data = make(count=25, classes=8)
            rare = np.concatenate([np.arange(8), rng.integers(0, 8, 17) // 3])
            data = replace(data, targets=rare)
            data = splits.assign_parts(data, validation=0.3, test=0.4, seed=seed)
            assert set(data.part("train").targets.tolist()) == set(range(8))

    def test_each_class_of_steps_is_trained(self):
        """To label, a sequence with a class that no other one has is for training."""
        for seed in range(10):
            data = make("label", count=20)
            targets = data.targets.copy()
            targets[data.offsets[seed]] = 3
            data = replace(data, targets=targets, classes=tuple("abcd"))
            data = splits.assign_parts(data, validation=0.3, test=0.4, seed=seed)
            assert data.split[seed] == TRAIN
            assert sum(sizes(data)[1:]) >= 12

    @pytest.mark.parametrize("task", TASKS)
    def test_validation_never_from_test(self, task):
        """A test part stays as given; validation is cut from the training part."""
        named = [TRAIN, TRAIN, TEST, TRAIN, UNASSIGNED] * 20
        data = splits.assign_parts(make(task, count=100, split=named), validation=0.25)
        np.testing.assert_array_equal(data.split == TEST, np.array(named) == TEST)
        assert sizes(data) == [60, 20, 20]

    def test_test_is_cut_from_train(self):
        """Without a test part it is cut from train; validation stays as given."""
        named = np.array([TRAIN, TRAIN, TRAIN, VALIDATION] * 20)
        data = splits.assign_parts(make(count=80, split=named), test=0.2)
        np.testing.assert_array_equal(data.split == VALIDATION, named == VALIDATION)
        assert sizes(data) == [48, 20, 12]

    def test_all_given(self):
        """Three parts in the file are left alone, and the rest is for training."""
        named = np.array([TRAIN, VALIDATION, TEST, UNASSIGNED] * 5)
        data = splits.assign_parts(make(count=20, split=named))
        expected = np.where(named == UNASSIGNED, TRAIN, named)
        np.testing.assert_array_equal(data.split, expected)

    def test_no_test(self):
        """A fraction of 0 leaves the part out."""
        data = splits.assign_parts(make(), validation=0.15, test=0)
        assert sizes(data) == [26, 4, 0]
        assert sizes(splits.assign_parts(make(), test=0, validation=0)) == [30, 0, 0]

    def test_single_sequence(self):
        """One sequence is for training."""
        for task in TASKS:
            assert sizes(splits.assign_parts(make(task, count=1))) == [1, 0, 0]

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            pytest.param({"test": -0.1}, "test is -0.1", id="negative"),
            pytest.param({"validation": 1.0}, "validation is 1.0", id="all"),
            pytest.param({"validation": float("nan")}, "is nan", id="nan"),
            pytest.param({"validation": 0.5, "test": 0.5}, "nothing", id="sum"),
        ],
    )
    def test_refusals(self, options, reason):
        """Fractions that leave nothing to train on are refused."""
        with pytest.raises(ValueError, match=reason):
            splits.assign_parts(make(), **options)

    def test_no_training_part(self):
        """A file of nothing but test sequences cannot be trained on."""
        with pytest.raises(ValueError, match="no sequence is left for training"):
            splits.assign_parts(make(count=2, split=[TEST, TEST]))


def test_many_classes_are_cut_short():
    """A message names the first of very many classes, and how many more there are."""
    text = join_names([f"class {number}" for number in range(10_000)])
    assert text.startswith("class 0, class 1, ")
    assert text.endswith("class 19 and 9980 more")
    assert join_names(["a", "b"]) == "a, b"


def test_groups_are_part_of_the_digest():
    """Groups go with their sequences, and change the digest only where there are any."""
    data, names = make(count=4), np.array(["ann", "bo", "ann", "cy"], object)
    grouped = replace(data, groups=names)
    assert grouped.take([3, 0]).groups.tolist() == ["cy", "ann"]
    assert concatenate(grouped, grouped, "both").groups.tolist() == [*names, *names]
    others = replace(data, groups=names[::-1])
    assert len({data.digest, grouped.digest, others.digest}) == 3
    assert replace(grouped, groups=None).digest == data.digest
    with pytest.raises(ValueError, match="groups needs one entry for each sequence"):
        replace(data, groups=names[:3])
    with pytest.raises(ValueError, match="only one of them has groups"):
        concatenate(data, grouped, "both")
