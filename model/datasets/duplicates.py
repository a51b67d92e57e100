"""Find equal sequences: the same in two parts, or with different labels."""

from collections.abc import Iterator

import numpy as np

from model.datasets.dataset import PARTS, TRAIN, Dataset

MAX_NAMED = 3  # pairs in a message


def warnings(dataset: Dataset) -> list[str]:
    """Return a line for each kind of mistake, with the sequences and how to mend it."""
    codes = dataset.hashes
    results = []
    if pairs := [*_copies(dataset, codes), *_near_copies(dataset, codes)]:
        held_out = int((dataset.split > TRAIN).sum())
        results.append(
            f"{len(pairs):,} of {held_out:,} sequences for validation and test are (nearly)"
            f" equal to a sequence of another part: {_join(dataset, pairs, 'part')}; the"
            " errors on those parts will look too low: remove the copies, or put equal"
            " sequences into one part (column split)"
        )
    if pairs := list(_contradictions(dataset, codes)):
        count = (
            "1 sequence equals"
            if len(pairs) == 1
            else f"{len(pairs):,} sequences equal"
        )
        results.append(
            f"{count} another but for the label:"
            f" {_join(dataset, pairs, 'label')}; no network can tell them apart: check"
            " the labels, or add a feature that differs"
        )
    return results


def _copies(dataset: Dataset, codes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield sequences for validation and test, each with its equal of an earlier part."""
    order = np.argsort(dataset.split, kind="stable")
    _, first, inverse = np.unique(codes[order], return_index=True, return_inverse=True)
    split = dataset.split.tolist()
    pairs = zip(order.tolist(), order[first[inverse]].tolist(), strict=True)
    return ((index, other) for index, other in pairs if split[other] < split[index])


def _near_copies(dataset: Dataset, codes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield sequences of two parts with one id and frames that hardly differ."""
    names, first = dataset.ids.tolist(), dict[object, int]()
    if len(set(names)) == len(names):
        return
    for index, name in enumerate(names):
        other = first.setdefault(name, index)
        if dataset.split[other] == dataset.split[index] or codes[other] == codes[index]:
            continue
        if dataset.lengths[other] == dataset.lengths[index]:
            ours, theirs = dataset.sequence(index), dataset.sequence(other)
            if np.allclose(ours, theirs, rtol=1e-3, atol=1e-6):
                yield index, other


def _contradictions(dataset: Dataset, codes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield sequences that equal an earlier one whose labels differ."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    others = first[inverse].tolist()
    for index, other in enumerate(others):
        if other != index:
            ours, theirs = dataset.target(index), dataset.target(other)
            if not np.array_equal(ours, theirs):
                yield index, other


def _join(dataset: Dataset, pairs: list[tuple[int, int]], detail: str) -> str:
    """Name the first pairs, with the part or the label of each sequence."""

    def name(index: int) -> str:
        about = ""
        if detail == "part":
            about = f" ({PARTS[dataset.split[index]]})"
        elif dataset.task == "classify":
            about = f" ({dataset.classes[dataset.targets[index]]:.40})"
        return f"{str(dataset.ids[index])!r:.40}{about}"

    named = [f"{name(index)} and {name(other)}" for index, other in pairs[:MAX_NAMED]]
    more = [f"{len(pairs) - MAX_NAMED:,} more"] if len(pairs) > MAX_NAMED else []
    return ", ".join(named + more)
