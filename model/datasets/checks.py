"""Find likely mistakes in a data set before training: in its labels and its features."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from model.datasets import duplicates, summary
from model.datasets.dataset import PARTS, TRAIN, Dataset, join_names

FEW = 5  # sequences of a class from which a network may learn it
MANY_NUMBERS = 30  # classes that are numbers, from which they may be measurements
FEW_OF_NUMBER = 10  # sequences of each number: fewer may be measurements
SEPARATORS = re.compile(r"\s*[;|,/+&]\s*")  # between several labels in a cell
EXAMPLES = 4  # classes in a message
LONG = 5_000  # steps that take long, and over which recurrent networks rarely learn
MAX_STEPS = 1_000_000  # of a large data set that are looked at for odd features
SOME = 10_000  # sequences that are counted together
TIME_NAMES = {"time", "timestamp", "datetime", "date", "t", "ts", "seconds"}
TIME_NAMES |= {"index", "idx", "row", "rownumber", "step", "frame", "unnamed:0"}


def warnings(dataset: Dataset) -> list[str]:
    """Return a line for each likely mistake: the sequences or columns, and how to go on."""
    return [
        *_label_warnings(dataset),
        *duplicates.warnings(dataset),
        *_group_warnings(dataset),
        *_feature_warnings(dataset),
        *_length_warnings(dataset),
    ]


def refuse_untrained_classes(dataset: Dataset) -> None:
    """Refuse a data set in which a class occurs for validation or test only.

    Raises:
        ValueError: names the classes. A network can't learn them.
    """
    counts = summary.count_classes(dataset)
    for part, name in list(enumerate(PARTS))[1:]:
        lost = np.flatnonzero((counts[:, TRAIN] == 0) & (counts[:, part] > 0))
        if len(lost):
            raise ValueError(
                f"class {join_names(dataset.classes[code] for code in lost)} occurs in the"
                f" {name} part but not in training: move some of its sequences there"
                " (column split), or remove them"
            )


def refuse_measurements(dataset: Dataset) -> None:
    """Refuse labels that were measured: many different numbers.

    Raises:
        ValueError: has examples of them, and says how to go on.
    """
    names = dataset.classes
    try:
        numbers = [float(name.replace(",", ".")) for name in names]
    except ValueError:
        return
    if len(names) <= MANY_NUMBERS or not all(map(math.isfinite, numbers)):
        return
    if all(number.is_integer() for number in numbers):
        gaps = max(numbers) - min(numbers) + 1 > len(names)  # ids of classes have none
        each = _sequences_by_class(dataset).sum() / len(names)
        if not gaps or each >= FEW_OF_NUMBER:
            return
    raise ValueError(
        f"the labels are {len(names):,} different numbers ({_examples(names)}) in"
        f" {len(dataset):,} sequences: Unrolled predicts classes, no numbers; write bins in"
        " their place, such as low, middle and high, or say that each number is a class"
        " (--labels-are-classes)"
    )


def _label_warnings(dataset: Dataset) -> list[str]:
    sequences = _sequences_by_class(dataset)
    present = np.flatnonzero(sequences)
    unit = "sequence" if dataset.task == "classify" else "step"
    if len(present) == 1:
        name = dataset.classes[present[0]]
        return [
            f"every {unit} has the label {name!r:.40}, so the network will give no other:"
            " is it the right column (--label-column)?"
        ]
    results = []
    if 2 * len(present) > len(dataset):
        results.append(
            f"{len(present):,} classes for {len(dataset):,} sequences are too many to"
            " learn: is it the right column (--label-column)?"
        )
    elif len(rare := present[sequences[present] < FEW]):
        names = join_names(f"{dataset.classes[c]} ({sequences[c]})" for c in rare)
        results.append(
            f"{_count(len(rare), 'class has', 'classes have')} fewer than {FEW} sequences,"
            f" too few to learn and to measure: {names}; add some, or join classes"
        )
    if absent := [dataset.classes[code] for code in np.flatnonzero(sequences == 0)]:
        results.append(
            f"no sequence has the class {join_names(absent)}, which the file declares: the"
            " network will not learn it"
        )
    results += _alike_warnings(dataset, sequences)
    return results


def _alike_warnings(dataset: Dataset, sequences: np.ndarray) -> list[str]:
    """Return lines for classes that differ in case or spaces alone, and for those that are
    several labels in one cell."""
    counted = dict(zip(dataset.classes, sequences.tolist(), strict=True))
    plain = {name: " ".join(name.split()).casefold() for name in counted}
    same = Counter(plain.values())
    alike = [name for name in counted if same[plain[name]] > 1]
    alike.sort(key=lambda name: plain[name])
    parts = {name: SEPARATORS.split(text) for name, text in plain.items()}
    known = Counter(part for several in parts.values() for part in {*several})
    joined = [
        name
        for name, several in parts.items()
        if len(several) > 1
        and any(
            part in same or (known[part] > 1 and {*";|"} & {*name}) for part in several
        )
    ]
    results = []
    for names, reason in (
        (alike, "differ in case or spaces only: write them alike"),
        (
            joined,
            "look like several labels in one cell: a network gives one class, so write one"
            " label, or train a network for each",
        ),
    ):
        if names:
            shown = _examples([f"{name!r:.40} ({counted[name]})" for name in names])
            results.append(f"classes {shown} {reason}")
    return results


def _examples(names: Sequence[str]) -> str:
    more = f" and {len(names) - EXAMPLES:,} more" if len(names) > EXAMPLES else ""
    return ", ".join(f"{name:.60}" for name in names[:EXAMPLES]) + more


def _sequences_by_class(dataset: Dataset) -> np.ndarray:
    """Return how many sequences each class occurs in, [C]."""
    size = len(dataset.classes)
    counts = np.zeros(size, np.int64)
    for first in range(0, len(dataset), SOME):
        rows = np.arange(first, min(first + SOME, len(dataset)))
        codes = dataset.take(rows).targets.astype(np.int64)
        if dataset.task == "label":
            owner = np.repeat(rows, dataset.lengths[rows])
            codes = np.unique(owner * size + codes) % size
        counts += np.bincount(codes, minlength=size)
    return counts


def _group_warnings(dataset: Dataset) -> list[str]:
    """Return a line if the data itself divides groups over parts."""
    if dataset.groups is None:
        return []
    parts: dict[object, set[int]] = {}
    for name, part in zip(dataset.groups.tolist(), dataset.split.tolist(), strict=True):
        parts.setdefault(name, set()).add(part)
    divided = {name: codes for name, codes in parts.items() if len(codes) > 1}
    if not divided:
        return []
    names = join_names(
        f"{name} ({', '.join(PARTS[code] for code in sorted(codes))})"
        for name, codes in divided.items()
    )
    return [
        f"{_count(len(divided), 'group is', 'groups are')} in more than one part: {names};"
        " the errors on those parts will look too low: put each group into one part"
        " (column split)"
    ]


def _feature_warnings(dataset: Dataset) -> list[str]:
    train = dataset.part("train")
    if not len(train) or dataset.columns:
        return []
    constant = _never_changes(train)
    train = _sample(train)
    rows = _counts_rows(train)
    constant &= ~rows  # in float32 the seconds since 1970 hardly change
    results = []
    if constant.any():
        count = _count(
            int(constant.sum()), "feature never changes", "features never change"
        )
        names = _names(dataset, constant)
        results.append(
            f"{count} in training: {names}; leave out what tells nothing (--ignore)"
        )
    for mask, reason in (
        (
            _leaks(train, ~constant),
            "one value for each class, and so may hold the label: if so, --ignore it",
        ),
        (
            rows,
            "values like row numbers or times: order the rows by it (--step-column), or"
            " --ignore it",
        ),
        (
            _counts_sequences(train, ~constant),
            "one number for each sequence, like an id: --ignore it, unless it is measured",
        ),
    ):
        if mask.any():
            results.append(f"feature {_names(dataset, mask)} has {reason}")
    return results


def _never_changes(dataset: Dataset) -> np.ndarray:
    """Return the features with a single value, [F]."""
    first = dataset.sequence(0)[0]
    constant = np.ones(len(first), bool)
    for block in dataset.blocks():
        constant &= (block == first).all(0)
        if not constant.any():
            break
    return constant


def _sample(dataset: Dataset) -> Dataset:
    """Return sequences from all over a large data set, of about `MAX_STEPS` steps."""
    count = int(len(dataset) * min(1, MAX_STEPS / dataset.offsets[-1]))
    if count == len(dataset):
        return dataset
    return dataset.take(np.linspace(0, len(dataset) - 1, max(count, 1)).astype(int))


def _leaks(dataset: Dataset, candidates: np.ndarray) -> np.ndarray:
    """Return the features with one value for each class, which differs for each, [F]."""
    codes = dataset.targets
    if dataset.task == "classify":
        codes = np.repeat(codes, dataset.lengths)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    places = np.flatnonzero(candidates)
    values: list[np.ndarray] = []  # of these places, by class
    for rows in np.split(order, starts[1:]):
        if not len(places):
            break
        frames = dataset.frames[np.ix_(rows, places)]
        same = (frames == frames[0]).all(0)
        places, values = places[same], [v[same] for v in (*values, frames[0])]
    mask = np.zeros(len(candidates), bool)
    if len(starts) > 1 and len(dataset) > len(starts):
        for column, place in enumerate(places):
            mask[place] = len({v[column] for v in values}) == len(starts)
    return mask


def _counts_rows(dataset: Dataset) -> np.ndarray:
    """Return the features that rise evenly in each sequence, or are times by name, [F]."""
    mask = np.zeros(len(dataset.features), bool)
    inner = np.ones(len(dataset.frames), bool)
    inner[dataset.offsets[:-1]] = False
    if inner.sum() < 10:
        return mask
    longest = np.diff(dataset.sequence(int(dataset.lengths.argmax())), axis=0)
    for place in np.flatnonzero((longest >= 0).all(0)):
        column = dataset.frames[:, place].astype(np.float64)
        rises = np.diff(column, prepend=column[0])[inner]
        step = float(np.median(rises))
        # A float32 is rounded by this much at most.
        error = 2 * np.finfo(np.float32).eps * np.abs(column).max()
        even = step > 4 * error and (np.abs(rises - step) <= error + 1e-6 * step).all()
        name = dataset.features[place].lower().replace(" ", "").replace("_", "")
        mask[place] = even or (name in TIME_NAMES and (rises >= 0).all())
    return mask


def _counts_sequences(dataset: Dataset, candidates: np.ndarray) -> np.ndarray:
    """Return the features with a whole number of its own for each sequence, [F]."""
    mask = np.zeros(len(candidates), bool)
    longest = dataset.sequence(int(dataset.lengths.argmax()))
    if len(dataset) < 5 or len(longest) < 2:
        return mask
    firsts = dataset.frames[dataset.offsets[:-1]]
    for place in np.flatnonzero(candidates & (longest == longest[0]).all(0)):
        numbers = firsts[:, place]
        same = np.repeat(numbers, dataset.lengths) == dataset.frames[:, place]
        whole = (numbers == np.round(numbers)).all()
        mask[place] = whole and same.all() and len(np.unique(numbers)) == len(numbers)
    return mask


def _length_warnings(dataset: Dataset) -> list[str]:
    lengths = dataset.lengths
    if len(lengths) > 1 and (lengths == 1).all():
        return [
            "every sequence has a single step: is it the right column of ids"
            " (--sequence-column)?"
        ]
    count, longest = int((lengths > LONG).sum()), int(lengths.argmax())
    if not count:
        return []
    name = f"{str(dataset.ids[longest])!r:.40}"
    return [
        f"{_count(count, 'sequence has', 'sequences have')} more than {LONG:,} steps"
        f" ({name} has {lengths[longest]:,}): training takes long, and recurrent networks"
        " rarely learn over so many; average steps, or cut the sequences"
    ]


def _names(dataset: Dataset, mask: np.ndarray) -> str:
    return join_names(dataset.features[place] for place in np.flatnonzero(mask))


def _count(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"
