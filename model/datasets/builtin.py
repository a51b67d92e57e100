"""Sets by name or path: those that come with the package, and a user's files."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.datasets import dataset as sets
from model.datasets import readers, splits

DATA = Path(__file__).with_name("data")  # Origins and licences: data/SOURCES.md.
SEED = 0  # The parts of a built-in set are the same for everyone.


class SourceError(ValueError):
    """Neither a built-in set nor a file."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """A set that comes with the package."""

    name: str
    title: str
    description: str
    task: sets.Task
    source: str
    licence: str
    loader: Callable[[], sets.Dataset]


def names() -> tuple[str, ...]:
    return tuple(BUILTIN)


def load(name: str) -> sets.Dataset:
    """A built-in set with all its parts."""
    if name not in BUILTIN:
        raise SourceError(_unknown(name))
    return replace(BUILTIN[name].loader(), name=name)


def resolve(
    source: str,
    *,
    task: sets.Task | None = None,
    test: Path | None = None,
    validation: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
) -> sets.Dataset:
    """A built-in set or a user's file, with all parts assigned.

    A built-in name goes before a file of that name (write ./digits for the file),
    and its parts are fixed: fractions and `seed` are for files. With `test`, the
    file is for training and validation only, and `test` is read once, at the end.
    """
    if source in BUILTIN:
        if test is not None:
            raise ValueError(f"{source} has a test part of its own")
        if task not in (None, BUILTIN[source].task):
            raise ValueError(f"{source} is for task {BUILTIN[source].task}, not {task}")
        return load(source)
    path = Path(source)
    if not path.exists():
        raise SourceError(_unknown(source))
    data = readers.read(path, task=task)
    if test is not None:
        data = _with_test(data, path, Path(test))
    return splits.assign(data, validation=validation, test=test_fraction, seed=seed)


def _with_test(data: sets.Dataset, path: Path, test: Path) -> sets.Dataset:
    if (data.split == sets.TEST).any():
        raise ValueError(f"{path} names a test part, and {test} would be another")
    held_out = readers.read(test, task=data.task)
    if not np.isin(held_out.split, (sets.TEST, sets.UNASSIGNED)).all():
        raise ValueError(f"{test} is for testing but names parts for training")
    held_out = replace(held_out, split=np.full(len(held_out), sets.TEST))
    try:
        return sets.concatenate(data, held_out, data.name)
    except ValueError as error:
        raise ValueError(f"{path} and {test}: {error}") from None


def _unknown(source: str) -> str:
    known = ", ".join(BUILTIN)
    message = f"{source!r} is neither a file nor a built-in set ({known})"
    near = difflib.get_close_matches(source, BUILTIN, n=1)
    return f"{message}; did you mean {near[0]!r}?" if near else message


def _digits() -> sets.Dataset:
    """The rows of a digit as steps; 200 of each class to test, 100 to validate."""
    data = readers.read(DATA / "digits.npz", task="classify")
    rng = np.random.default_rng(SEED)
    split = np.full(len(data), sets.TRAIN)
    for code in range(len(data.classes)):
        rows = rng.permutation(np.flatnonzero(data.targets == code))
        split[rows[:200]] = sets.TEST
        split[rows[200:300]] = sets.VALIDATION
    return replace(data, frames=data.frames / 255, split=split)


def _letters() -> sets.Dataset:
    """Fold 0 to test, as published; every word of it is in the other folds too."""
    data, arrays = _letters_file()
    split = np.where(arrays["fold"] == 0, sets.TEST, sets.TRAIN)
    return splits.assign(replace(data, split=split), validation=0.1, seed=SEED)


def _letters_unseen() -> sets.Dataset:
    """Words of group 0 to test; a tenth of the other words to validate.

    Validation on words that training has seen would measure the memory of words,
    and stop and calibrate a network for a test unlike this one.
    """
    data, arrays = _letters_file()
    group, words = arrays["word_group"], arrays["words"]
    others = np.unique(words[group != 0])
    held_out = np.random.default_rng(SEED).choice(others, len(others) // 10, False)
    split = np.where(np.isin(words, held_out), sets.VALIDATION, sets.TRAIN)
    return replace(data, split=np.where(group == 0, sets.TEST, split))


def _letters_file() -> tuple[sets.Dataset, dict[str, np.ndarray]]:
    path = DATA / "letters.npz"
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("fold", "word_group", "words")}
    return readers.read(path, task="label"), arrays


def _vowels() -> sets.Dataset:
    """The official test part; a fifth of each speaker's training part to validate."""
    data = readers.read(DATA / "vowels.npz", task="classify")
    return splits.assign(data, validation=0.2, seed=SEED)


BUILTIN = {
    builtin.name: builtin
    for builtin in (
        Builtin(
            name="digits",
            title="Handwritten digits by rows",
            description="10,000 digits of MNIST, each 28 steps (rows) of 28 pixels.",
            task="classify",
            source="MNIST (LeCun, Cortes, Burges)",
            licence="MIT (the package that they come from)",
            loader=_digits,
        ),
        Builtin(
            name="letters",
            title="Handwritten words by letters",
            description="6,877 words, each 3 to 14 steps (letters) of 16 x 8 pixels.",
            task="label",
            source="OCR data set (Kassel; Taskar, Guestrin, Koller)",
            licence="none stated; the package that they come from is BSD-2-Clause",
            loader=_letters,
        ),
        Builtin(
            name="letters-unseen",
            title="Handwritten words, tested on unseen words",
            description="The same words; those of the test part occur nowhere else.",
            task="label",
            source="OCR data set (Kassel; Taskar, Guestrin, Koller)",
            licence="none stated; the package that they come from is BSD-2-Clause",
            loader=_letters_unseen,
        ),
        Builtin(
            name="vowels",
            title="Speakers of Japanese vowels",
            description="640 utterances by 9 speakers, each 7 to 29 steps of 12 cepstra.",
            task="classify",
            source="Japanese Vowels, UCI (Kudo, Toyama, Shimbo)",
            licence="CC BY 4.0",
            loader=_vowels,
        ),
    )
}
