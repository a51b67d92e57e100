"""NumPy archives: a bad array is refused by its name, a large one before it is read."""

import contextlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from model.datasets import readers
from model.datasets.dataset import TASKS
from model.datasets.readers import files, npz
from tests.model.datasets.data_files import refused

ARRAYS = {
    "x": np.zeros((5, 2)),
    "lengths": [2, 3],
    "y": [0, 1],
    "classes": ["a", "b"],
    "split": [0, 2],
}


def write_arrays(path, changes):
    arrays = {**ARRAYS, **changes}
    np.savez(
        path, **{name: value for name, value in arrays.items() if value is not None}
    )


def test_refusals(tmp_path):
    """A bad array is named, with the reason."""
    for changes, message in (
        ({"x": None}, ": expected an array 'x' or"),
        ({"frames": np.zeros((2, 2, 2))}, ": expected an array"),
        ({"x": np.zeros(5)}, ", array 'x': expected numbers"),
        ({"x": np.zeros((5, 0))}, ", array 'x': expected"),
        ({"x": [["1", "2"]] * 5}, ", array 'x': expected"),
        ({"x": np.zeros((5, 2), complex)}, ", array 'x'"),
        ({"x": np.full((5, 2), np.nan)}, ", array 'x': not a"),
        ({"x": np.full((5, 2), 1e39)}, ", array 'x': not a"),
        ({"x": np.array([None])}, ", array 'x': not a NumPy"),
        ({"lengths": None}, ": 'x' needs an array 'lengths'"),
        ({"lengths": [2, 2]}, ", array 'lengths': does not add"),
        ({"lengths": [5, 0]}, ", array 'lengths': each"),
        ({"lengths": [2.0, 3.0]}, ", array 'lengths': ex"),
        ({"lengths": [2**62, 2**62]}, ", array 'lengths': does not"),
        ({"offsets": [1, 2, 5]}, ", array 'offsets': begins"),
        ({"offsets": [0, 3, 5]}, ", array 'offsets': contr"),
        ({"offsets": [0, 5, 5]}, ", array 'offsets': each"),
        ({"y": None}, ": array 'y' is missing"),
        ({"y": [0, 1, 0]}, ", array 'y': its shape is [3]"),
        ({"y": [[0], [1]]}, ", array 'y': its shape"),
        ({"y": [0, 2]}, ", array 'y': 2 is no index in 2"),
        ({"y": [-1, 0]}, ", array 'y': -1 is no index"),
        ({"y": [0.0, 1.0]}, ", array 'y': expected whole"),
        ({"y": ["a", "z"]}, ", array 'y': label 'z' is not"),
        ({"y": ["a", ""]}, ", array 'y': the label is empty"),
        ({"classes": [1, 2]}, ", array 'classes': exp"),
        ({"classes": ["a", "a"]}, ", array 'classes': a name"),
        ({"features": ["u"]}, ", array 'features': 1 names"),
        ({"split": [0]}, ", array 'split': expected 2"),
        ({"split": [0, 3]}, ", array 'split': expected 2"),
        ({"split": ["a", "b"]}, ", array 'split': exp"),
        (
            {"x": None, "frames": np.zeros((2, 2, 2))},
            ", array 'lengths': 'frames' are of one length",
        ),
    ):
        path = tmp_path / "data.npz"
        write_arrays(path, changes)
        assert refused(path, path.read_bytes()).startswith(message)


def test_damaged(tmp_path):
    """A file with cut or flipped bytes is refused, or else read; no other error."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **ARRAYS)
    whole = path.read_bytes()
    for content in (b"", b"PK", b"text", pickle.dumps([1]), whole[:200], whole[:-9]):
        assert ": not a NumPy archive" in refused(path, content)
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert ": not a NumPy" in refused(path, (tmp_path / "x.npy").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 100):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with contextlib.suppress(readers.ReadError):
            readers.read(path)


def test_ambiguous(tmp_path):
    """If every length is 1 the task must be given."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"lengths": [1] * 5, "y": [0, 1, 0, 1, 1], "split": None})
    with pytest.raises(readers.ReadError, match="array 'y': one label a sequence or"):
        readers.read(path)
    for task in TASKS:
        assert readers.read(path, task=task).task == task


def test_layouts(tmp_path):
    """Offsets for lengths and frames for x give the same set."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"lengths": [2, 2], "x": np.arange(8).reshape(4, 2)})
    expected = readers.read(path).digest
    write_arrays(
        path, {"lengths": None, "offsets": [0, 2, 4], "x": np.arange(8).reshape(4, 2)}
    )
    assert readers.read(path).digest == expected
    equal = {"x": None, "lengths": None, "frames": np.arange(8).reshape(2, 2, 2)}
    write_arrays(path, {**equal, "y": np.array(["a", "b"]), "classes": None})
    assert readers.read(path).digest == expected
    write_arrays(path, {**equal, "y": [[0, 1], [1, 1]]})
    data = readers.read(path)
    assert (data.task, data.targets.tolist()) == ("label", [0, 1, 1, 1])
    assert refused(path, path.read_bytes(), task="classify").startswith(", array 'y'")


def test_labels_without_classes(tmp_path):
    """Numbers without names of classes are labels, as they would be in text."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"y": [10, 9], "classes": None})
    data = readers.read(path)
    assert (data.classes, data.targets.tolist()) == (("9", "10"), [1, 0])
    write_arrays(path, {"y": [True, False], "classes": None})
    assert readers.read(path).classes == ("false", "true")


class TestDecompressionBombs:
    """A small file that decompresses to gigabytes is refused first."""

    @pytest.fixture(autouse=True)
    def max_bytes(self, monkeypatch):
        monkeypatch.setattr(files, "MAX_BYTES", 2_000_000)

    def test_zeros(self, tmp_path, monkeypatch):
        """Arrays of many zeros, by their headers."""
        monkeypatch.setattr(npz.npy, "read_array", lambda *_: pytest.fail("read"))
        path = tmp_path / "data.npz"
        x = np.zeros((1_000_000, 1), np.uint8)
        np.savez_compressed(path, **ARRAYS | {"x": x})
        assert path.stat().st_size < 5_000
        message = refused(path, path.read_bytes())
        assert message.startswith(
            ", array 'x': the arrays up to it would take 5,000,000"
        )
        assert "at most 2,000,000; arrays that are not compressed" in message

    def test_all(self, tmp_path):
        """The sizes of all arrays that are read are added."""
        path = tmp_path / "data.npz"
        many = np.zeros(90_000, np.int8)
        write_arrays(path, {"other": np.zeros(10_000_000, np.int8)})
        assert len(readers.read(path)) == 2
        write_arrays(path, {"lengths": many, "offsets": many, "y": many})
        assert refused(path, path.read_bytes()).startswith(", array 'y': the arrays")

    def test_header(self, tmp_path):
        """A header that declares another size is refused."""
        for shape in ((5, 2**40), (4, 2), (-5, 2), (5, 2**70)):
            path = tmp_path / "data.npz"
            write_arrays(path, {"x": None})
            with (
                zipfile.ZipFile(path, "a") as archive,
                archive.open("x.npy", "w") as file,
            ):
                about = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, about)
                file.write(bytes(80))
            message = refused(path, path.read_bytes())
            assert message.startswith(", array 'x': not a NumPy archive")
            assert "and it has 80" in message

    def test_long_header(self, tmp_path):
        """A header longer than NumPy allows is refused."""
        path = tmp_path / "data.npz"
        write_arrays(path, {"x": None})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            head = b"\x93NUMPY\x02\x00" + (50_000_000).to_bytes(4, "little")
            archive.writestr("x.npy", head + bytes(50_000_000))
        tracemalloc.start()
        assert ", array 'x': not a NumPy" in refused(path, path.read_bytes())
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


def test_one_step_each(tmp_path):
    """Labels of sequences of one step each may be of either task, to predict; to train,
    the task is needed."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((3, 2)), lengths=[1, 1, 1], y=[0, 1, 0])
    sequences = readers.read_sequences(path)
    for task in TASKS:
        assert sequences.labels_of(1, task) == ["1"]
        assert readers.read(path, task=task).task == task
    with pytest.raises(readers.ReadError, match="All lengths are 1: give task"):
        readers.read(path)
