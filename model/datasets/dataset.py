"""A data set of sequences: frames joined along time, targets, and parts.

frames   a a a b b c c c c    sequences a, b and c, joined along time
lengths  3     2   4
offsets  0     3   5       9  sequence i is frames[offsets[i]:offsets[i + 1]]
targets  one class a sequence (classify) or one class a step (label)

The frames may be a file that is mapped into memory. Sequences that are taken from a data
set share its frames: they are only copied when `frames` is asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, get_args

import numpy as np

from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Column, Vocabulary
from model.datasets import spool

Task = Literal["classify", "label"]
TASKS: tuple[Task, ...] = get_args(Task)

TRAIN, VALIDATION, TEST, UNASSIGNED = 0, 1, 2, -1
MAX_NAMES = 20  # in a message
PARTS = ("train", "validation", "test")  # A part's number is its index here.


@dataclass(frozen=True, eq=False)
class Dataset:
    """Sequences joined along time, with their targets."""

    name: str
    task: Task
    frames: np.ndarray = field(repr=False)  # [sum of lengths, F] float32
    lengths: np.ndarray  # [N] int32, each >= 1
    targets: np.ndarray  # [N] int32 (classify) or [sum of lengths] int32 (label)
    classes: tuple[str, ...]
    features: tuple[str, ...]  # F names
    split: np.ndarray  # [N] int8: index in PARTS, or UNASSIGNED
    # [N], for messages: text, or numbers from 1 if the file has none
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    # [N] names or numbers, such as subjects, whose sequences stay in one part; or unknown
    groups: np.ndarray | None = None
    # Of text: the vocabulary whose ids the frames are, all strings, and the number of each
    # step's string, parallel to `frames_of`.
    vocabulary: Vocabulary | None = None
    strings: tuple[str, ...] | None = field(default=None, repr=False)
    words_of: np.ndarray | None = field(default=None, repr=False)
    schema: RecordSchema | None = None  # of records: how their columns became frames
    offsets: np.ndarray = field(init=False, repr=False)  # [N + 1] int64
    # Sequence i is frames_of[starts[i]:][:lengths[i]], and so are its steps' targets.
    starts: np.ndarray = field(init=False, repr=False)  # [N] int64
    frames_of: np.ndarray = field(init=False, repr=False)
    targets_of: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, dtype, ndim in (
            ("frames", np.float32, 2),
            ("lengths", np.int32, 1),
            ("targets", np.int32, 1),
            ("split", np.int8, 1),
        ):
            array = _cast(name, getattr(self, name), dtype, ndim)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "offsets", _offsets(self.lengths))
        object.__setattr__(self, "starts", self.offsets[:-1])
        object.__setattr__(self, "frames_of", self.frames)
        object.__setattr__(self, "targets_of", self.targets)
        if not len(self.ids):
            object.__setattr__(self, "ids", np.arange(1, len(self) + 1))
        self._check()

    def _check(self) -> None:
        steps, width = self.frames.shape
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; expected one of {TASKS}")
        if len(self.lengths) and self.lengths.min() < 1:
            raise ValueError("each sequence needs at least one step")
        if self.offsets[-1] != steps:
            total = self.offsets[-1]
            raise ValueError(f"lengths add up to {total} but there are {steps} frames")
        expected = len(self.lengths) if self.task == "classify" else steps
        if len(self.targets) != expected:
            raise ValueError(
                f"{len(self.targets)} targets; task {self.task} needs {expected}"
            )
        for name in ("split", "ids", "groups"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.lengths):
                raise ValueError(f"{name} needs one entry for each sequence")
        if not np.isin(self.split, (TRAIN, VALIDATION, TEST, UNASSIGNED)).all():
            raise ValueError("split holds 0 (train), 1 (validation), 2 (test) or -1")
        if width < 1 or len(self.features) != width:
            raise ValueError(f"{len(self.features)} feature names for {width} features")
        for names, kind in ((self.classes, "class"), (self.features, "feature")):
            if not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"{kind} names are non-empty strings")
            if len(set(names)) != len(names):
                raise ValueError(f"a {kind} name is repeated: {', '.join(names)}")
        if len(self.targets) and not (
            self.targets.min() >= 0 and self.targets.max() < len(self.classes)
        ):
            raise ValueError(f"a target is outside the {len(self.classes)} classes")
        if not all(np.isfinite(block).all() for block in self.blocks()):
            raise ValueError("frames are finite numbers that fit float32")

    def __getattr__(self, name: str) -> np.ndarray:
        """Join the frames, or the steps' targets, of sequences that were taken."""
        if name not in ("frames", "targets"):
            raise AttributeError(name)
        array = self.frames_of if name == "frames" else self.targets_of
        by_step = name == "frames" or self.task == "label"
        if by_step and not self._whole:
            joined = np.empty((self.offsets[-1], *array.shape[1:]), array.dtype)
            for start, places in self._places():
                joined[start : start + len(places)] = array[places]
            array = joined
        vars(self)[name] = array
        return array

    def __len__(self) -> int:
        return len(self.lengths)

    def sequence(self, index: int) -> np.ndarray:
        """Return the frames of one sequence, [T, F]."""
        index = range(len(self))[index]  # Negative indices, and IndexError.
        start = self.starts[index]
        return self.frames_of[start : start + self.lengths[index]]

    def target(self, index: int) -> np.ndarray:
        """Return the class of one sequence, [], or of each of its steps, [T]."""
        index = range(len(self))[index]
        if self.task == "classify":
            return self.targets[index]
        start = self.starts[index]
        return self.targets_of[start : start + self.lengths[index]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that an embedding stands for, and numbers; () for plain frames."""
        encoded = self.vocabulary or self.schema
        return () if encoded is None else encoded.columns

    @property
    def words(self) -> np.ndarray:
        """The number in `strings` of each step, [sum of lengths], of text."""
        assert self.words_of is not None
        if self._whole:
            return self.words_of
        return np.concatenate([self.words_of[p] for _, p in self._places()])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all frames in order, some megabytes at a time, [R, F]."""
        if self._whole:
            for block in spool.blocks(self.frames_of):
                yield np.require(block, requirements="A")  # a file's may not be
        else:
            for _, places in self._places():
                yield self.frames_of[places]

    def _places(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks of steps: the number of the first, and places in `frames_of`."""
        rows = max(1, spool.BLOCK_BYTES // (4 * len(self.features)))
        first = 0
        while first < len(self):
            start = self.offsets[first]
            end = np.searchsorted(self.offsets, start + rows, "right") - 1
            end = max(int(end), first + 1)
            shift = self.starts[first:end] - self.offsets[first:end]
            steps = np.arange(start, self.offsets[end])
            yield int(start), steps + np.repeat(shift, self.lengths[first:end])
            first = end

    @property
    def _whole(self) -> bool:
        """True if the sequences are all of `frames_of`, in order."""
        same = len(self.frames_of) == self.offsets[-1]
        return bool(same and np.array_equal(self.starts, self.offsets[:-1]))

    def take(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the sequences at these indices, in this order, or where a mask is true."""
        chosen = np.asarray(indices)
        if chosen.dtype == bool:
            if chosen.shape != self.lengths.shape:
                raise ValueError("a mask needs one entry for each sequence")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)  # An empty list would be float64.
        lengths = self.lengths[chosen]
        changes = {
            "lengths": lengths,
            "offsets": _offsets(lengths),
            "starts": self.starts[chosen],
            "split": self.split[chosen],
            "ids": self.ids[chosen],
        }
        if "_hashes" in vars(self):
            changes["_hashes"] = self.hashes[chosen]
        if self.groups is not None:
            changes["groups"] = self.groups[chosen]
        if self.task == "classify":
            changes["targets_of"] = self.targets[chosen]
        return self._changed(**changes)

    def with_split(self, split: np.ndarray) -> "Dataset":
        """Return the same sequences in other parts, [N] indices in PARTS."""
        return self._changed(split=split.astype(np.int8))

    def _changed(self, **changes: object) -> "Dataset":
        """Return a copy with other values, which are consistent with each other."""
        result = object.__new__(Dataset)
        vars(result).update(vars(self))
        for name in ("frames", "targets", "_digest"):  # made again when needed
            vars(result).pop(name, None)
        vars(result).update(changes)
        return result

    def part(self, name: str) -> "Dataset":
        """Return the sequences of "train", "validation" or "test", which may be none."""
        if name not in PARTS:
            raise ValueError(f"no part {name!r}; there are {', '.join(PARTS)}")
        return self.take(self.split == PARTS.index(name))

    def map_classes(self, classes: Sequence[str]) -> "Dataset":
        """Return the same sequences with targets as indices in another list of classes."""
        codes = {name: code for code, name in enumerate(classes)}
        used = np.unique(self.targets)
        lost = [self.classes[code] for code in used if self.classes[code] not in codes]
        if lost:
            raise ValueError(
                f"the data has labels that are not among the classes: {join_names(lost)};"
                f" the classes are {join_names(classes)}"
            )
        table = np.array([codes.get(name, -1) for name in self.classes], np.int32)
        return self._changed(targets_of=table[self.targets_of], classes=tuple(classes))

    @property
    def hashes(self) -> np.ndarray:
        """64 bits of a hash of each sequence's frames, [N] uint64."""
        if "_hashes" in vars(self):
            return vars(self)["_hashes"]
        hashes = hash_sequences(map(self.sequence, range(len(self))))
        if self._is_mapped:
            vars(self)["_hashes"] = hashes
        return hashes

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content, except its name and the ids."""
        if "_digest" in vars(self):
            return vars(self)["_digest"]
        shape = (int(self.offsets[-1]), len(self.features))
        head = [self.task, self.classes, self.features, shape, len(self)]
        state = hashlib.sha256(json.dumps(head).encode())
        rest = (self.lengths, self.targets, self.split)
        for array in chain(self.blocks(), rest):
            little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
            state.update(np.ascontiguousarray(little_endian).data)
        if self.groups is not None:
            state.update(json.dumps(self.groups.tolist()).encode())
        if self._is_mapped:
            vars(self)["_digest"] = state.hexdigest()
        return state.hexdigest()

    @property
    def _is_mapped(self) -> bool:
        """True for the frames of a large file, which nothing changes."""
        return not self.frames_of.flags.writeable


def hash_sequences(sequences: Iterable[np.ndarray]) -> np.ndarray:
    """Return 64 bits of a hash of each sequence's frames [T, F], [N] uint64."""
    digests = bytearray()
    for frames in sequences:
        content = np.ascontiguousarray(frames, "<f4")
        digests += hashlib.blake2b(content, digest_size=8).digest()
    return np.frombuffer(bytes(digests), "<u8")


def join_names(names: Iterable[str]) -> str:
    """Join names for a message: the first 20, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(f"{name:.80}" for name in names[:MAX_NAMES]) + more


def default_features(count: int) -> tuple[str, ...]:
    """Return names for nameless features: x0, x1, ..."""
    return tuple(f"x{index}" for index in range(count))


def concatenate(train: Dataset, test: Dataset, name: str) -> Dataset:
    """Join two data sets; the classes in `test` must occur in `train`."""
    if train.task != test.task:
        raise ValueError(f"tasks differ: {train.task} and {test.task}")
    if len(train.features) != len(test.features):
        raise ValueError(
            f"feature counts differ: {len(train.features)} and {len(test.features)}"
        )
    features = merge_feature_names(train.features, test.features)
    classes = train.classes
    known = {classes[code] for code in np.unique(train.targets)}
    used = [test.classes[code] for code in np.unique(test.targets)]
    if unknown := [name for name in used if name not in known]:
        raise ValueError(
            f"no sequence for training has the class {join_names(unknown)}; those that"
            f" occur are {join_names(sorted(known))}"
        )
    if (train.groups is None) != (test.groups is None):
        raise ValueError("only one of them has groups (--group-column)")
    train, test = train.map_classes(classes), test.map_classes(classes)
    return Dataset(
        name=name,
        task=train.task,
        frames=spool.collect(chain(train.blocks(), test.blocks())),
        lengths=np.concatenate([train.lengths, test.lengths]),
        targets=np.concatenate([train.targets, test.targets]),
        classes=classes,
        features=features,
        split=np.concatenate([train.split, test.split]),
        ids=np.concatenate([train.ids, test.ids]),
        groups=None
        if train.groups is None or test.groups is None
        else np.concatenate([train.groups, test.groups]),
    )


def merge_feature_names(
    ours: tuple[str, ...], theirs: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the feature names of two joined sets: equal, or named in one of them only."""
    default = default_features(len(ours))
    if ours != theirs and default not in (ours, theirs):
        # The same columns in another order would be mixed up silently.
        raise ValueError(f"features differ: {', '.join(ours)} and {', '.join(theirs)}")
    return theirs if ours == default else ours


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _cast(name: str, array: np.ndarray, dtype: type, ndim: int) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != ndim:
        raise ValueError(f"{name} has {array.ndim} dimensions; expected {ndim}")
    if array.size == 0 or array.dtype == dtype:
        return array.astype(dtype, copy=False)
    if array.dtype.kind not in ("biuf" if dtype is np.float32 else "biu"):
        raise ValueError(f"{name} cannot be {array.dtype}")
    if dtype is np.float32:
        with np.errstate(over="ignore"):  # Becomes inf, which is refused.
            return array.astype(dtype)
    limits = np.iinfo(dtype)
    if array.min() < limits.min or array.max() > limits.max:
        raise ValueError(f"{name} holds a number that does not fit {limits.dtype}")
    return array.astype(dtype)
