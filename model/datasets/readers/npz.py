"""Read NumPy archives (.npz), without pickle; other arrays are ignored.

x        [sum of lengths, F]     or  frames  [N, T, F], all of one length
lengths  [N]                     or  offsets [N + 1]
y        [N] one class a sequence, or [sum of lengths] one a step ([N, T] too):
         labels as text or whole numbers, or indices where there are classes
classes, features (text), ids [N], groups [N] (text or whole numbers) and split [N]
(0 train, 1 validation, 2 test, -1) are optional, and so is y to predict

Large arrays that are not compressed (`numpy.savez`) are mapped into memory: only those
parts of the file are read that are used.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from model.datasets import spool
from model.datasets.dataset import PARTS, UNASSIGNED, Task, default_features
from model.datasets.readers import files, table_layout
from model.datasets.readers.sequences import Labels, Sequences, to_text
from model.datasets.readers.table_layout import Columns, Expected

KNOWN = (
    "x",
    "frames",
    "lengths",
    "offsets",
    "y",
    "classes",
    "features",
    "ids",
    "split",
)
FRAMES = ("x", "frames")
HEADER = 2**14  # NumPy takes headers of 10,000 bytes
LOCAL_HEADER = "<4s5H3I2H"  # of a member in a zip archive
ADVICE = "arrays that are not compressed (numpy.savez) may be larger"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: Path, expected: Expected) -> Sequences:
    try:
        reason = "an archive has the arrays 'ids' and 'y', and steps in order"
        table_layout.refuse(expected.columns, ["sequence", "label", "step"], reason)
    except ValueError as error:
        raise files.ReadError(path, None, str(error)) from None
    return _Archive(path, expected.columns.group).sequences(expected)


class _Archive:
    """The arrays of one file, and errors that name the array."""

    def __init__(self, path: Path, group: str | None):
        self.path = path
        self._group = group or "groups"
        self.arrays = _load(path, (*KNOWN, self._group))
        if group and group not in self.arrays:
            raise files.ReadError(path, None, f"array {group!r:.80} is missing")

    def fail(self, name: str, reason: str) -> files.ReadError:
        return files.ReadError(self.path, f"array {name!r}", reason)

    def sequences(self, expected: Expected) -> Sequences:
        frames, lengths = self.frames()
        targets: np.ndarray | None = None
        classes: tuple[str, ...] = ()
        task = expected.task
        if expected.training or "y" in self.arrays:
            task, y = self.y(task, lengths, expected.training)
            targets, classes = self.targets(y)
        names = self.strings("features") or default_features(frames.shape[1])
        if len(names) != frames.shape[1]:
            reason = f"{len(names)} names for {frames.shape[1]} features"
            raise self.fail("features", reason)
        ids = tuple(map(str, range(1, len(lengths) + 1)))
        if "ids" in self.arrays:
            ids = tuple(map(to_text, self.names("ids", len(lengths))))
        try:
            ignored = Columns(ignore=expected.columns.ignore)
            chosen = table_layout.assign(names, Expected(ignored, expected.features))
        except ValueError as error:
            raise self.fail("features", str(error)) from None
        places = [names.index(name) for name in chosen.features]
        return Sequences(
            path=self.path,
            ids=ids,
            frames=_columns(frames, places),
            lengths=lengths,
            features=chosen.names,
            labels=targets,
            classes=classes,
            task=None if targets is None else task,
            split=self.split(len(lengths)),
            groups=self.groups(len(lengths)) if expected.training else None,
            unused=chosen.unused,
        )

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames [sum of lengths, F] float32, and lengths [N]."""
        if ("x" in self.arrays) == ("frames" in self.arrays):
            reason = "expected an array 'x' or an array 'frames', and not both"
            raise files.ReadError(self.path, None, reason)
        name, ndim = ("x", 2) if "x" in self.arrays else ("frames", 3)
        array = self.arrays[name]
        if array.ndim != ndim or array.dtype.kind not in "biuf" or not array.size:
            shape = "[sum of lengths, F]" if name == "x" else "[N, T, F]"
            reason = f"expected numbers {shape}, not {array.dtype} {list(array.shape)}"
            raise self.fail(name, reason)
        frames = array.reshape(-1, array.shape[-1])
        if not _is_mapped_frames(frames):
            frames = spool.collect(_float32(block) for block in spool.blocks(frames))
        self.check_finite(name, frames)
        if name == "x":
            return frames, self.lengths(len(frames))
        for other in ("lengths", "offsets"):
            if other in self.arrays:
                reason = "'frames' are of one length; join others along time as 'x'"
                raise self.fail(other, reason)
        return frames, np.full(array.shape[0], array.shape[1], np.int32)

    def check_finite(self, name: str, frames: np.ndarray) -> None:
        first = 0
        for block in spool.blocks(frames):
            finite = np.isfinite(block)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                place = f"row {first + row}, column {column}"
                raise self.fail(name, f"not a finite float32 number at {place}")
            first += len(block)

    def lengths(self, steps: int) -> np.ndarray:
        names = [name for name in ("lengths", "offsets") if name in self.arrays]
        if not names:
            reason = "'x' needs an array 'lengths' or 'offsets'"
            raise files.ReadError(self.path, None, reason)
        results = []
        for name in names:
            array = self.integers(name)
            if name == "offsets":
                if array[0] != 0:
                    raise self.fail(name, f"begins with {array[0]}; expected 0")
                array = np.diff(array)
            if not array.size or array.min() < 1:
                raise self.fail(name, "each sequence needs at least one step")
            # Each is at most `steps` before they are added: no overflow.
            if array.max() > steps or array.sum() != steps:
                raise self.fail(name, f"does not add up to the {steps} rows of 'x'")
            results.append(array)
        if not np.array_equal(results[0], results[-1]):
            raise self.fail("offsets", "contradicts 'lengths'")
        return results[0]

    def y(
        self, task: Task | None, lengths: np.ndarray, training: bool
    ) -> tuple[Task | None, np.ndarray]:
        """Return the task and the labels, [N] or [sum of lengths].

        To predict, the labels of sequences of one step each may be of either task.
        """
        if "y" not in self.arrays:
            raise files.ReadError(self.path, None, "array 'y' is missing")
        y, sequences, steps = self.arrays["y"], len(lengths), int(lengths.sum())
        if "frames" in self.arrays and y.shape == self.arrays["frames"].shape[:2]:
            task, y = task or "label", y.reshape(-1)
        if y.ndim != 1 or len(y) not in (sequences, steps):
            raise self.fail(
                "y",
                f"its shape is {list(y.shape)}; expected [{sequences}], one label a "
                f"sequence, or [{steps}], one a step",
            )
        if task is None and sequences == steps:
            if not training:
                return None, y
            reason = "one label a sequence or one a step? All lengths are 1: give task"
            raise self.fail("y", reason)
        task = task or ("classify" if len(y) == sequences else "label")
        expected = sequences if task == "classify" else steps
        if len(y) != expected:
            raise self.fail("y", f"{len(y)} labels; task {task} needs {expected}")
        return task, y

    def targets(self, y: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return indices in the classes, [N] or [sum of lengths], and the classes."""
        if y.dtype.kind not in "biuU":
            raise self.fail("y", f"expected whole numbers or text, not {y.dtype}")
        declared = self.strings("classes")
        values = np.unique(np.concatenate([np.unique(b) for b in spool.blocks(y)]))
        names = [to_text(value) for value in values.tolist()]
        if declared and y.dtype.kind in "iu":
            if values[0] < 0 or values[-1] >= len(declared):
                wrong = values[0] if values[0] < 0 else values[-1]
                raise self.fail("y", f"{wrong} is no index in {len(declared)} classes")
            names = [declared[value] for value in values.tolist()]
        labels = Labels(declared or None)
        try:
            codes = np.array([labels.encode(name) for name in names])
        except ValueError as error:
            raise self.fail("y", str(error)) from None
        table = labels.targets(codes)
        places = (np.searchsorted(values, block) for block in spool.blocks(y))
        return np.concatenate([table[place] for place in places]), labels.classes

    def names(self, name: str, count: int) -> list[str | int]:
        array = self.arrays[name]
        if array.shape != (count,) or array.dtype.kind not in "iuU":
            reason = f"expected {count} texts or whole numbers, not {array.dtype}"
            raise self.fail(name, f"{reason} {list(array.shape)}")
        names: list[str | int] = array.tolist()
        return names

    def groups(self, count: int) -> np.ndarray | None:
        if self._group not in self.arrays:
            return None
        names = list(map(to_text, self.names(self._group, count)))
        if "" in names:
            raise self.fail(self._group, f"sequence {names.index('')} has no group")
        return np.array(names, object)

    def split(self, count: int) -> np.ndarray:
        if "split" not in self.arrays:
            return np.full(count, UNASSIGNED)
        split = self.integers("split")
        allowed = (*range(len(PARTS)), UNASSIGNED)
        if len(split) != count or not np.isin(split, allowed).all():
            reason = f"expected {count} of 0 (train), 1 (validation), 2 (test) or -1"
            raise self.fail("split", reason)
        return split

    def integers(self, name: str) -> np.ndarray:
        array = self.arrays[name]
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
            reason = f"expected whole numbers in a row, not {array.dtype}"
            raise self.fail(name, f"{reason} {list(array.shape)}")
        return array.astype(np.int64)

    def strings(self, name: str) -> tuple[str, ...]:
        if name not in self.arrays:
            return ()
        array = self.arrays[name]
        if array.ndim != 1 or array.dtype.kind != "U":
            raise self.fail(name, f"expected text in a row, not {array.dtype}")
        texts = tuple(array.tolist())
        if "" in texts or len(set(texts)) != len(texts):
            raise self.fail(name, "a name is empty or repeated")
        return texts


def _float32(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return block.astype(np.float32)


def _is_mapped_frames(frames: np.ndarray) -> bool:
    """Return true for an array that can be used as it is in a file."""
    return frames.dtype == np.float32 and frames.flags.c_contiguous


def _columns(frames: np.ndarray, places: list[int]) -> np.ndarray:
    if places == [*range(frames.shape[1])]:
        return frames
    return spool.collect(block[:, places] for block in spool.blocks(frames))


def _load(path: Path, known: Sequence[str]) -> dict[str, np.ndarray]:
    name = None
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            members = {name: f"{name}.npy" for name in known if f"{name}.npy" in names}
            headers, size = {}, 0
            for name, member in members.items():
                headers[name] = header = _Header(archive, member)
                if not header.can_be_mapped:
                    size += header.memory(name in FRAMES)
                    content = "the arrays up to it"
                    files.check_memory(path, f"array {name!r}", content, size, ADVICE)
            arrays = {}
            for name, member in members.items():
                if headers[name].can_be_mapped:
                    arrays[name] = headers[name].map(path)
                    continue
                with archive.open(member) as file:
                    arrays[name] = npy.read_array(file, allow_pickle=False)
            return arrays
    except files.ReadError:
        raise
    except FileNotFoundError as error:
        raise files.ReadError(path, None, str(error.strerror)) from None
    except Exception as error:
        # NumPy, zipfile and zlib each raise their own errors for a damaged file.
        place = None if name is None else f"array {name!r}"
        reason = f"not a NumPy archive without pickle: {error}"
        raise files.ReadError(path, place, reason) from None


class _Header:
    """The type, the shape and the place of an array, from its header alone.

    Raises:
        ValueError: the header is missing, or declares another size.
    """

    def __init__(self, archive: zipfile.ZipFile, member: str):
        with archive.open(member) as file:
            head = io.BytesIO(file.read(HEADER))
        shape, fortran, dtype = HEADERS[npy.read_magic(head)](head)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        self.shape, self.fortran, self.dtype = shape, fortran, dtype
        self.info = archive.getinfo(member)
        self.start = head.tell()
        size, declared = self.info.file_size - self.start, self.bytes
        if declared != size:
            raise ValueError(
                f"its header declares {declared:,} bytes of values, and it has {size:,}"
            )

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def can_be_mapped(self) -> bool:
        stored = self.info.compress_type == zipfile.ZIP_STORED
        return stored and self.bytes > spool.LIMIT

    def memory(self, frames: bool) -> int:
        """Return the bytes that the array takes while it is read."""
        # Frames are copied to float32; the others are sorted, or copied to int64.
        copies = 4 if frames else self.dtype.itemsize + 8
        return self.bytes + math.prod(self.shape) * copies

    def map(self, path: Path) -> np.ndarray:
        """Map the array into memory, after a check of its bytes against their CRC-32."""
        with path.open("rb") as file:
            file.seek(self.info.header_offset)
            *_, name, extra = struct.unpack(LOCAL_HEADER, file.read(30))
        start = self.info.header_offset + 30 + name + extra
        whole = np.memmap(path, np.uint8, "r", start, (self.info.file_size,))
        crc = 0
        for block in spool.blocks(whole):
            crc = zlib.crc32(block.data, crc)
        if crc != self.info.CRC:
            raise ValueError("its bytes don't match their checksum (CRC-32)")
        values = np.asarray(whole)[self.start :].view(self.dtype)
        return values.reshape(self.shape, order="F" if self.fortran else "C")
