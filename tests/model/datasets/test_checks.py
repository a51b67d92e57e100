"""The summary of a data set, and the warnings of likely mistakes."""

from dataclasses import replace

import numpy as np
import pytest

from model.datasets import builtin, checks
from model.datasets.dataset import PARTS, TASKS, Dataset
from model.datasets.summary import summarise
from tests.support.networks import make_dataset


def with_feature(data, values, name="extra"):
    """The same set with one more feature, [sum of lengths]."""
    column = np.asarray(values, np.float32)[:, None]
    frames = np.concatenate([data.frames, column], 1)
    return replace(data, frames=frames, features=(*data.features, name))


def step_of(data):
    """The number of each step in its sequence, from 0."""
    return np.concatenate([np.arange(length) for length in data.lengths])


def one_of(lines, *parts):
    """Check that there is one warning, and that it has these words."""
    (line,) = lines
    for part in parts:
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize("task", TASKS)
def test_summary(task):
    """The numbers are those that a count of the sequences one by one gives."""
    data = make_dataset(task)
    summary = summarise(data)
    for code, name in enumerate((*PARTS, "all")):
        chosen = [n for n in range(len(data)) if name == "all" or data.split[n] == code]
        lengths = sorted(len(data.sequence(n)) for n in chosen)
        part = summary.parts[name]
        assert (part.sequences, part.steps) == (len(chosen), sum(lengths))
        assert part.lengths == (lengths[0], int(np.median(lengths)), lengths[-1])
        if name != "all":
            targets = np.concatenate([np.ravel(data.target(n)) for n in chosen])
            counts = [int((targets == c).sum()) for c in range(len(data.classes))]
            assert summary.counts[:, code].tolist() == counts
    np.testing.assert_array_equal(summary.minimum, data.frames.min(0))
    np.testing.assert_allclose(summary.mean, data.frames.mean(0), atol=1e-6)
    np.testing.assert_array_equal(summary.maximum, data.frames.max(0))


def test_summary_without_a_part():
    """A part without sequences has no lengths."""
    assert summarise(make_dataset(counts=(9, 3, 0))).parts["test"].lengths is None


@pytest.mark.parametrize("task", TASKS)
def test_good_data(task):
    """Data without mistakes gives no warning, and is not refused."""
    data = make_dataset(task)
    assert checks.warnings(data) == []
    checks.refuse_untrained_classes(data)


@pytest.mark.parametrize("name", ["vowels", "letters", "letters-unseen", "digits"])
def test_builtin_sets(name):
    """The built-in sets give no warning."""
    assert checks.warnings(builtin.load(name)) == []


class TestLabels:
    def test_alike(self):
        """Classes that differ in case or spaces, and several labels in a cell, are shown."""
        names = (
            "Straight",
            "straight",
            "in  line",
            "In Line",
            "billing",
            "billing;login",
        )
        names = (*names, "a|b", "b|c", "and/or")
        data = make_dataset(counts=(90, 6, 6))
        several = replace(data, targets=np.arange(102) % len(names), classes=names)
        alike, joint = [n for n in checks.warnings(several) if n.startswith("classes ")]
        assert alike.startswith(
            "classes 'in  line' (12), 'In Line' (11), 'Straight' (12), "
        )
        assert alike.endswith(
            "'straight' (12) differ in case or spaces only: write them alike"
        )
        assert joint.startswith(
            "classes 'billing;login' (11), 'a|b' (11), 'b|c' (11) look "
        )

    @pytest.mark.parametrize(
        ("labels", "each", "refused"),
        [
            ([3 * n for n in range(80)], 1, True),  # whole numbers with gaps
            ([3 * n for n in range(80)], 20, False),
            (range(80), 1, False),  # numbers of classes
            ([n / 2 for n in range(80)], 20, True),
            ([f"{n},5" for n in range(80)], 2, True),
            ([n / 2 for n in range(10)], 2, False),
            ([f"c{n / 2}" for n in range(80)], 1, False),
            ([*range(0, 158, 2), "nan"], 1, False),
        ],
    )
    def test_measurements(self, labels, each, refused):
        """Many different numbers are refused, with examples, but not ids of classes."""
        count = len(labels) * each
        data = make_dataset(counts=(count, 0, 0))
        targets = np.arange(count) % len(labels)
        data = replace(data, targets=targets, classes=tuple(map(str, labels)))
        if not refused:
            return checks.refuse_measurements(data)
        with pytest.raises(ValueError, match=f"{labels[0]}, .* and 76 more.*bins"):
            checks.refuse_measurements(data)

    def test_few(self):
        """Classes with few sequences are named, with their counts."""
        data = make_dataset(counts=(30, 6, 6))
        targets = np.where(np.arange(42) < 3, 2, np.arange(42) % 2)
        rare = replace(data, targets=targets)
        one_of(checks.warnings(rare), "1 class has fewer than 5", "cat (3)")

    def test_few_of_steps(self):
        """To label, the sequences with the class count, not its steps."""
        data = make_dataset("label", counts=(30, 6, 6))
        targets = np.where(np.arange(len(data.targets)) < data.lengths[0], 2, 0)
        targets[-1] = 1
        rare = replace(data, targets=targets)
        one_of(checks.warnings(rare), "2 classes have fewer", "bee (1), cat (1)")

    def test_one(self):
        """A single class is probably not the column of labels."""
        for task in TASKS:
            data = make_dataset(task)
            same = replace(data, targets=np.zeros_like(data.targets))
            one_of(checks.warnings(same), "label 'ant'", "--label-column")

    def test_too_many(self):
        """Nearly as many classes as sequences are probably not the labels."""
        data = make_dataset(counts=(40, 10, 10))
        names = tuple(f"c{number}" for number in range(60))
        unique = replace(data, classes=names, targets=np.arange(60))
        one_of(checks.warnings(unique), "60 classes for 60 sequences")

    def test_declared_only(self):
        """A class that no sequence has is named."""
        data = make_dataset()
        more = replace(data, classes=(*data.classes, "yak"))
        one_of(checks.warnings(more), "no sequence has the class yak")
        checks.refuse_untrained_classes(more)

    def test_untrained(self):
        """A class that occurs for the test only is refused."""
        for task in TASKS:
            data = make_dataset(task)
            targets = data.targets.copy()
            targets[-1] = 3
            data = replace(data, classes=(*data.classes, "dog"), targets=targets)
            with pytest.raises(ValueError, match="class dog occurs in the test part"):
                checks.refuse_untrained_classes(data)


def copy_sequence(data, source, target):
    """The same set, in which the sequence `target` has the frames of `source`."""
    pieces = [data.sequence(n) for n in range(len(data))]
    pieces[target] = pieces[source]
    lengths = [len(piece) for piece in pieces]
    return replace(data, frames=np.concatenate(pieces), lengths=lengths)


class TestDuplicates:
    def test_hashes(self):
        """Sequences have one hash if and only if their frames are equal."""
        data = copy_sequence(make_dataset(), 1, 40)
        codes = data.hashes
        assert codes[1] == codes[40]
        assert len(set(codes.tolist())) == len(data) - 1
        np.testing.assert_array_equal(data.take([5, 1]).hashes, codes[[5, 1]])

    def test_other_part(self):
        """A test sequence that is in training too is named, with its equal."""
        data = make_dataset(counts=(24, 12, 12))
        same = next(n for n in range(36, 48) if data.targets[n] == data.targets[0])
        data = replace(copy_sequence(data, 0, same), ids=np.arange(100, 148))
        one_of(
            checks.warnings(data),
            "1 of 24 sequences for validation and test",
            f"'{100 + same}' (test) and '100' (train)",
        )

    def test_same_part(self):
        """Equal sequences of one part and label are no mistake."""
        data = make_dataset(counts=(24, 12, 12))
        same = next(n for n in range(1, 24) if data.targets[n] == data.targets[0])
        assert checks.warnings(copy_sequence(data, 0, same)) == []

    def test_nearly_equal(self):
        """Sequences of one id that hardly differ count as equal; others don't."""
        data = make_dataset(counts=(24, 12, 12))
        same = next(n for n in range(36, 48) if data.targets[n] == data.targets[0])
        data = copy_sequence(data, 0, same)
        data.frames[data.offsets[same] :][: data.lengths[same]] *= 1.0001
        assert checks.warnings(data) == []
        ids = data.ids.copy()
        ids[same] = ids[0]
        one_of(checks.warnings(replace(data, ids=ids)), "'1' (test) and '1' (train)")

    def test_other_label(self):
        """Equal sequences with two labels are named, with the labels."""
        data = make_dataset(counts=(24, 12, 12))
        other = next(n for n in range(1, 24) if data.targets[n] != data.targets[0])
        names = [data.classes[data.targets[n]] for n in (other, 0)]
        one_of(
            checks.warnings(copy_sequence(data, 0, other)),
            "1 sequence equals another but for the label",
            f"'{other + 1}' ({names[0]}) and '1' ({names[1]})",
        )

    def test_many(self):
        """Of many pairs three are named."""
        data = make_dataset(counts=(24, 12, 12))
        rows = np.concatenate([np.arange(24), np.arange(24)])
        data = replace(data.take(rows), split=np.repeat([0, 2], 24))
        one_of(checks.warnings(data), "24 of 24", "21 more")


class TestFeatures:
    def test_constant(self):
        """Features that never change are named."""
        data = make_dataset()
        data = with_feature(data, np.ones(len(data.frames)), "fixed")
        one_of(checks.warnings(data), "1 feature never changes", "fixed")

    def test_many_constant(self):
        """Of very many features the first are named."""
        data = make_dataset()
        names = tuple(f"f{number}" for number in range(30_000))
        wide = Dataset(
            name="wide",
            task=data.task,
            frames=np.zeros((len(data.frames), 30_000), np.float32),
            lengths=data.lengths,
            targets=data.targets,
            classes=data.classes,
            features=names,
            split=data.split,
        )
        features = [line for line in checks.warnings(wide) if "never change" in line]
        one_of(features, "30,000 features", "f19 and 29980 more")

    def test_row_numbers(self):
        """Numbers that rise evenly in every sequence, and times, are no features."""
        data = make_dataset()
        steps, rows = step_of(data), np.arange(len(data.frames))
        for values, name in (
            (steps, "k"),
            (rows + 7, "k"),
            (0.02 * steps + 3.5, "k"),
            (1.7e9 + steps, "Time_Stamp"),
            (np.sqrt(steps), "t"),
        ):
            lines = checks.warnings(with_feature(data, values, name))
            one_of(lines, f"feature {name} has", "--step-column")
        for values, name in (
            (np.sqrt(steps), "k"),
            (steps * np.repeat(np.arange(48) % 5 + 1, data.lengths), "k"),
            (-np.sqrt(steps), "t"),
        ):
            assert checks.warnings(with_feature(data, values, name)) == []

    def test_ids(self):
        """A whole number for each sequence is probably its id."""
        data = make_dataset()
        numbers = np.random.default_rng(0).permutation(48)
        lines = checks.warnings(with_feature(data, np.repeat(numbers, data.lengths)))
        one_of(lines, "feature extra has one number for each sequence")
        for other in (numbers + 0.5, numbers // 2):
            values = np.repeat(other, data.lengths)
            assert checks.warnings(with_feature(data, values)) == []

    def test_leak(self):
        """A feature with a value for each class holds the label."""
        for task in TASKS:
            data = make_dataset(task)
            codes = data.targets
            if task == "classify":
                codes = np.repeat(codes, data.lengths)
            lines = checks.warnings(with_feature(data, np.array([7, -1, 3])[codes]))
            one_of(lines, "feature extra has one value for each class")
            for other in (codes // 2, np.where(codes, codes, step_of(data))):
                assert checks.warnings(with_feature(data, other)) == []


class TestLengths:
    def test_long(self):
        """The longest sequence is named if it takes very many steps."""
        data = make_dataset(counts=(24, 6, 6))
        rng = np.random.default_rng(1)
        longest = replace(
            data,
            frames=np.concatenate([data.frames, rng.normal(size=(5_001, 3))]),
            lengths=[*data.lengths, 5_001],
            targets=[*data.targets, 0],
            split=[*data.split, 0],
            ids=np.array([*data.ids, "drift"], object),
        )
        one_of(checks.warnings(longest), "1 sequence has more than", "'drift'", "5,001")

    def test_single_steps(self):
        """Sequences of one step each come from a wrong column of ids."""
        data = make_dataset("label", counts=(60, 0, 0))
        count = len(data.frames)
        single = replace(
            data,
            task="classify",
            lengths=np.ones(count, int),
            split=np.zeros(count, int),
            ids=np.arange(count),
        )
        one_of(checks.warnings(single), "a single step", "--sequence-column")
