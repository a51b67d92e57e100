"""Sequences to learn from, put together from the steps of others, for sets with a label a step.

A network that reads few distinct sequences learns them by heart, and errs on all others. In
recombined sequences a step's neighbours tell less, and the network must look at the step.
"""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model.datasets.dataset import Dataset, join_names

ENGLISH = "english"  # the name of the built-in list
WORDS = Path(__file__).parent / "data" / "words.txt.gz"  # origin: data/SOURCES.md
PIECE = 4  # steps of a piece at most
SPELLED = 2 / 3  # of the recombined sequences, with a list of words
MAX_BYTES = 100_000_000  # of a list


class RecombinationError(ValueError):
    """Sequences can't be recombined: of this data, or with this list of words."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The sequences of an epoch, as places of their steps in a data set.

    Attributes:
        lengths: [N] int32.
        starts: [N] int64. The steps of sequence i are places[starts[i]:][:lengths[i]].
        places: [sum of lengths] int64, in `Dataset.frames_of` and `targets_of`.
    """

    lengths: np.ndarray
    starts: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Recombination:
    """Replaces sequences by others of the same steps, drawn anew for each epoch.

    A sequence is replaced with `probability`. A third of the replacements, or all of them
    without `words`, are pieces: a length is drawn from 1 to that of the longest sequence,
    and filled with pieces of 1 to 4 steps of random sequences. The others spell a random
    word: each step is a random one of its class.

    Attributes:
        dataset: sequences to learn from, with a label a step.
        probability: 0 to 1.
        words: the classes of each word.
    """

    dataset: Dataset
    probability: float
    words: tuple[np.ndarray, ...] = ()

    def epoch(self, seed: tuple[int, int]) -> Steps:
        """Return an epoch's sequences; the seed is that of the run and of the epoch."""
        random = np.random.default_rng((*seed, 1))  # 0: the order of the batches
        count = len(self.dataset)
        kind = random.random(count) < self.probability
        spelled = kind & (random.random(count) < (SPELLED if self.words else 0))
        spliced = kind & ~spelled
        words = random.integers(max(1, len(self.words)), size=spelled.sum())
        lengths = self.dataset.lengths.copy()
        lengths[spliced] = random.integers(1, lengths.max() + 1, spliced.sum())
        lengths[spelled] = [len(self.words[word]) for word in words]
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        places = np.arange(lengths.sum(dtype=np.int64))
        places += np.repeat(self.dataset.starts - starts, lengths)
        places[np.repeat(spliced, lengths)] = self._pieces(lengths[spliced], random)
        if len(words):
            classes = np.concatenate([self.words[word] for word in words])
            places[np.repeat(spelled, lengths)] = self._steps(classes, random)
        return Steps(lengths, starts, places)

    def _pieces(self, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the places of spliced sequences' steps, one sequence after another."""
        total, longest = int(lengths.sum()), int(self.dataset.lengths.max())
        ends = np.cumsum(random.integers(1, min(PIECE, longest) + 1, total))
        ends = np.union1d(ends[ends < total], np.cumsum(lengths))
        pieces = np.diff(ends, prepend=0)
        # From any sequence that is long enough.
        order = np.argsort(self.dataset.lengths, kind="stable")
        first = np.searchsorted(self.dataset.lengths[order], pieces)
        sources = order[random.integers(first, len(order))]
        spare = self.dataset.lengths[sources] - pieces
        starts = self.dataset.starts[sources] + random.integers(0, spare + 1)
        return np.repeat(starts - (ends - pieces), pieces) + np.arange(total)

    def _steps(self, classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the place of a random step of each class."""
        by_class, starts = self._by_class
        return by_class[random.integers(starts[classes], starts[classes + 1])]

    @cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps' places, ordered by class, and where each class starts [K + 1]."""
        steps = _places(self.dataset)
        targets = self.dataset.targets_of[steps]
        order = np.argsort(targets, kind="stable")
        numbers = np.arange(len(self.dataset.classes) + 1)
        return steps[order], np.searchsorted(targets[order], numbers)


def build(
    dataset: Dataset, probability: float, words: str | None
) -> Recombination | None:
    """Return the recombination of a data set's train part; None if it is off.

    A word of the list is left out if a class of it isn't in the train part, if it is longer
    than the longest sequence, or if a word in it is one of the other parts, and none of the
    train part: the network must not meet before what these parts measure.

    Args:
        words: a file with a word a line, or the built-in list `english`; None for none.

    Raises:
        RecombinationError: the data has one label a sequence, the list can't be read, none
            of its words is left, or it has no use.
    """
    if not probability:
        if words is not None:
            raise RecombinationError("a list of words needs --recombine")
        return None
    if dataset.task != "label":
        raise RecombinationError(
            f"{dataset.name} has one label a sequence; --recombine needs one a step"
        )
    train = dataset.part("train")
    if words is None or not len(train):
        return Recombination(train, probability)
    if long := [name for name in dataset.classes if len(name) != 1]:
        raise RecombinationError(
            "words can be spelled where each class is one character; not"
            f" {join_names(long)}"
        )
    codes = {name: code for code, name in enumerate(dataset.classes)}
    known = {dataset.classes[code] for code in np.unique(train.targets)}
    held_out = _spelled(dataset.part("validation")) | _spelled(dataset.part("test"))
    held_out -= _spelled(train)
    longest = int(train.lengths.max())
    usable = [
        word
        for word in read_words(words)
        if len(word) <= longest
        and known.issuperset(word)
        and not any(other in word for other in held_out)
    ]
    if not usable:
        raise RecombinationError(
            f"{words}: no word can be spelled by the classes {join_names(sorted(known))}"
        )
    spelled = tuple(np.array([codes[name] for name in word]) for word in usable)
    return Recombination(train, probability, spelled)


def read_words(name: str) -> list[str]:
    """Return the distinct words of a file, or of the built-in list, sorted.

    The built-in list has each word with its first letter and without, since the words
    of `letters` are without their capitals.

    Raises:
        RecombinationError: the file can't be read.
    """
    if name == ENGLISH:
        whole = gzip.decompress(WORDS.read_bytes()).decode().split()
        return sorted({*whole, *(word[1:] for word in whole if len(word) > 1)})
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecombinationError(f"{name}: over {MAX_BYTES:,} bytes")
        return sorted(set(content.decode().split()))
    except (OSError, UnicodeDecodeError) as error:
        raise RecombinationError(f"{name}: {error}") from None


def _spelled(dataset: Dataset) -> set[str]:
    """Return the distinct words that the classes of a data set's sequences spell."""
    names = np.array(dataset.classes)
    sequences: Iterable[np.ndarray] = map(dataset.target, range(len(dataset)))
    return {"".join(names[target]) for target in sequences}


def _places(dataset: Dataset) -> np.ndarray:
    """Return the places of all steps in `frames_of`, sequence by sequence."""
    shift = dataset.starts - dataset.offsets[:-1]
    return np.arange(dataset.offsets[-1]) + np.repeat(shift, dataset.lengths)
