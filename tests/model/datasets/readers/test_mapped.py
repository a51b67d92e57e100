"""Data sets in files that are mapped into memory equal those in memory."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest

from model.datasets import checks, readers, splits, spool
from model.datasets.dataset import TASKS, UNASSIGNED, concatenate
from model.datasets.readers import parquet
from model.datasets.summary import summarise
from tests.model.datasets.data_files import WRITERS, make_ragged
from tests.support.networks import make_dataset


@pytest.fixture(params=TASKS)
def data(request):
    return splits.assign_parts(make_dataset(request.param, counts=(60, 0, 0)))


@pytest.fixture
def small_limits(monkeypatch):
    """Map every array, and look at a few rows at a time."""
    monkeypatch.setattr(spool, "LIMIT", 0)
    monkeypatch.setattr(spool, "BLOCK_BYTES", 100)


def write(path, data, **changes):
    arrays = {
        "x": data.frames,
        "lengths": data.lengths,
        "y": data.targets,
        "classes": data.classes,
        "split": data.split,
    }
    np.savez(path, **arrays | changes)
    return path


def test_equal(data, small_limits, tmp_path):
    """Digest, hashes, summary, warnings and parts are those of the data in memory."""
    frames = data.frames.copy()
    frames[:, 1] = np.repeat(np.arange(len(data)), data.lengths)  # like an id
    data = replace(data, frames=frames)
    mapped = readers.read(write(tmp_path / "a.npz", data), task=data.task)
    assert not mapped.frames.flags.writeable
    assert mapped.digest == data.digest
    for ours, theirs in ((mapped, data), (mapped.take([5, 2]), data.take([5, 2]))):
        np.testing.assert_array_equal(ours.hashes, theirs.hashes)
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        np.testing.assert_array_equal(ours.targets, theirs.targets)
        np.testing.assert_array_equal(np.concatenate([*ours.blocks()]), ours.frames)
    np.testing.assert_array_equal(summarise(mapped).counts, summarise(data).counts)
    np.testing.assert_allclose(summarise(mapped).mean, data.frames.mean(0), rtol=1e-6)
    assert checks.warnings(mapped) == checks.warnings(data) != []
    new = np.full(len(data), UNASSIGNED)
    again = splits.assign_parts(mapped.with_split(new))
    assert again.digest == splits.assign_parts(replace(data, split=new)).digest


def test_parts_share_frames(data, small_limits, tmp_path):
    """Parts copy no frames, not even those of mapped classes and of parts of parts."""
    mapped = readers.read(write(tmp_path / "a.npz", data), task=data.task)
    part = mapped.part("train").take([3, 1]).map_classes(("z", *data.classes))
    assert part.frames_of is mapped.frames_of
    expected = data.part("train").take([3, 1])
    np.testing.assert_array_equal(part.targets, expected.targets + 1)
    np.testing.assert_array_equal(part.sequence(1), expected.sequence(1))
    np.testing.assert_array_equal(part.target(1), expected.target(1) + 1)


def test_converted(data, small_limits, tmp_path):
    """Other types and orders of numbers are converted, and columns left out."""
    wide = np.concatenate([data.frames[:, :1], data.frames], 1)
    names = ["unused", *data.features]
    for x in (
        wide.astype(np.float64),
        np.asfortranarray(wide),
        wide.astype(">f4"),
        wide,
    ):
        path = write(tmp_path / "a.npz", data, x=x, features=names)
        columns = readers.Columns(ignore=("unused",))
        mapped = readers.read(path, task=data.task, columns=columns)
        assert mapped.digest == data.digest
        assert mapped.frames.flags.c_contiguous


def test_joined(data, small_limits, tmp_path):
    """Two files are joined to one array, which is in a file too."""
    mapped = readers.read(write(tmp_path / "a.npz", data), task=data.task)
    both = concatenate(mapped, mapped, "both")
    assert not both.frames.flags.writeable
    assert both.digest == concatenate(data, data, "both").digest


def test_bad_number(data, small_limits, tmp_path):
    """A number that is not finite is named by its row, in whatever block it is."""
    x = data.frames.copy()
    x[99, 2] = np.nan
    path = write(tmp_path / "a.npz", data, x=x)
    with pytest.raises(readers.ReadError, match="at row 99, column 2"):
        readers.read(path, task=data.task)


def test_damaged(small_limits, tmp_path):
    """A changed byte of a mapped array is noticed."""
    path = write(tmp_path / "a.npz", make_dataset(counts=(3000, 0, 0)))
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("x.npy").header_offset + 100_000
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(readers.ReadError, match=r"array 'x'.* checksum \(CRC-32\)"):
        readers.read(path)


@pytest.mark.parametrize("task", TASKS)
def test_other_formats(task, tmp_path, monkeypatch):
    """Large sets in other formats are kept in a temporary file, sorted or not."""
    data = make_ragged(task, count=40)
    paths = [tmp_path / f"data.{ending}" for ending in ("csv", "parquet")]
    for path in paths:
        WRITERS[path.suffix[1:]](path, data)
    lines = paths[0].read_text("utf-8").splitlines()
    paths.append(tmp_path / "shuffled.csv")
    order = np.random.default_rng(0).permutation(np.arange(1, len(lines)))
    order = sorted(order.tolist(), key=lambda row: lines[row].split(",")[1] != "0")
    text = [lines[0], *(lines[row] for row in order)]
    paths[2].write_text("\n".join(text), "utf-8")
    before = [readers.read(path, task=task).digest for path in paths]
    monkeypatch.setattr(spool, "LIMIT", 0)
    monkeypatch.setattr(spool, "BLOCK_BYTES", 7)
    monkeypatch.setattr(parquet, "BLOCK", 5)
    mapped = [readers.read(path, task=task) for path in paths]
    assert not any(read.frames.flags.writeable for read in mapped)
    assert [read.digest for read in mapped] == before
    assert before[0] == before[1]


def test_full_disk(small_limits, monkeypatch):
    """If the temporary folder is full, the error names it and the way out."""

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", Full)
    with pytest.raises(spool.SpoolError, match=r"No space left on device.*TMPDIR"):
        spool.collect([np.zeros((9, 2))])
