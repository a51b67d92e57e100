"""Golden answers that can't be read are refused before they take memory."""

import zipfile

import numpy as np
import pytest

from model.bundle import bundle, golden
from model.bundle.bundle import BundleError
from model.bundle.golden import Golden
from tests.support.bundles import seal
from tests.support.servers import ROOT


def save(path, change=lambda arrays: None, **more):
    """Write golden answers of two sequences, with changes."""
    arrays = {
        "frames": np.zeros((2, 3, 4), np.float32),
        "lengths": np.array([1, 3], np.int32),
        "probabilities": np.zeros((2, 5), np.float32),
        "state": np.zeros((2, 0), np.float32),
    }
    arrays |= more
    change(arrays)
    np.savez_compressed(path, **arrays)
    return path.read_bytes()


def empty(arrays):
    arrays.update({name: array[:0] for name, array in arrays.items()})


def declared(data, size):
    """The archive's directory says that all members have that size."""
    data, at = bytearray(data), 0
    while (at := data.find(golden.DIRECTORY_ENTRY, at)) >= 0:
        data[at + 24 : at + 28] = size.to_bytes(4, "little")
        at += 1
    return bytes(data)


def rewritten(path, compression=zipfile.ZIP_STORED, **more):
    """The archive, written anew by another tool, with other members."""
    save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, text in (parts | more).items():
            archive.writestr(name, text)
    return path.read_bytes()


def large_header(path):
    """An array of a few bytes whose header declares 4 TiB."""
    save(path)
    with zipfile.ZipFile(path) as archive:
        state = archive.read("state.npy")
    state = state.replace(b"(2, 0), }", b"(2, 549755813888), }", 1)
    state = state.replace(b" " * 11 + b"\n", b"\n")
    return rewritten(path, **{"state.npy": state})


def many_members(path):
    return rewritten(path, **{str(number): b"" for number in range(200)})


F32, I32 = np.float32, np.int32
WRONG = {
    "no-archive": (lambda p: b"golden", "can't be read"),
    "cut": (lambda p: save(p)[:-30], "can't be read"),
    "too-large": (lambda p: declared(save(p), 2**25), "holds more than 67108864"),
    "lies": (
        lambda p: declared(save(p, state=np.zeros((2, 2**20), F32)), 2**10),
        "Bad CRC|not as long",
    ),
    "header": (large_header, "state.npy: is not as long as its shape says"),
    "members": (many_members, "64 members"),
    "packed": (lambda p: rewritten(p, zipfile.ZIP_LZMA), "not compressed as NumPy"),
    "text": (lambda p: save(p, state=np.array([["a"], ["b"]])), "not numbers"),
    "no-rows": (lambda p: save(p, empty), "fit"),
    "rows": (lambda p: save(p, lengths=np.ones(3, I32)), "fit"),
    "flat": (lambda p: save(p, frames=np.zeros((2, 3), F32)), "fit"),
    "steps": (lambda p: save(p, probabilities=np.zeros((2, 4, 5), F32)), "fit"),
    "length-0": (lambda p: save(p, lengths=np.array([0, 3], I32)), "from 1 to 3"),
    "length-4": (lambda p: save(p, lengths=np.array([1, 4], I32)), "from 1 to 3"),
}


class TestGolden:
    @pytest.mark.parametrize(("make", "reason"), WRONG.values(), ids=WRONG.keys())
    def test_wrong(self, tmp_path, make, reason):
        """A file that is not golden answers is refused before it takes memory."""
        with pytest.raises(ValueError, match=reason):
            Golden.read(make(tmp_path / "golden.npz"))

    def test_right(self, tmp_path):
        """Valid golden answers are read, also in Fortran order."""
        frames = np.asfortranarray(np.arange(24, dtype=F32).reshape(2, 3, 4))
        answers = Golden.read(save(tmp_path / "golden.npz", frames=frames))
        np.testing.assert_array_equal(answers.frames, frames)

    def test_swapped(self, copy):
        """A file replaced after the bundle was read is refused."""
        verified = bundle.read(copy)
        verified.golden()
        save(copy / bundle.GOLDEN)
        with pytest.raises(BundleError, match=r"golden\.npz: SHA-256 differs"):
            verified.golden()

    def test_of_another_network(self):
        """The golden answers must have the sizes in `bundle.json`."""
        digits = bundle.read(ROOT / "bundles" / "digits" / "1")
        metadata = digits.metadata
        for changes in (
            {"input": metadata.input.model_copy(update={"features": 999})},
            {"classes": (*metadata.classes, "more")},
            {"state_size": 10**9},
            {"task": "label"},
        ):
            changed = metadata.model_copy(update=changes)
            with pytest.raises(BundleError, match="answers of another network"):
                bundle.Bundle(digits.folder, changed, digits.digest).golden()

    def test_too_many_to_export(self, tmp_path, monkeypatch):
        """Golden answers that `read` would refuse are not written."""
        monkeypatch.setattr(golden, "MAX_BYTES", 1000)
        many = np.zeros((2, 100, 4), F32)
        with pytest.raises(ValueError, match="holds more than 1000 bytes"):
            Golden(
                many, np.ones(2, I32), np.zeros((2, 5), F32), np.zeros((2, 0), F32)
            ).save(tmp_path / "golden.npz")

    def test_pickle(self, copy):
        """A pickled object in the golden answers is refused."""
        arrays = dict(np.load(copy / bundle.GOLDEN))
        arrays["state"] = np.array([print], object)
        np.savez(copy / bundle.GOLDEN, **arrays)
        with pytest.raises(ValueError, match="allow_pickle"):
            seal(copy).golden()

    def test_others(self, copy):
        """Golden answers with other arrays are refused."""
        arrays = dict(np.load(copy / bundle.GOLDEN))
        np.savez(copy / bundle.GOLDEN, **arrays, more=np.zeros(1))
        with pytest.raises(ValueError, match="other arrays"):
            seal(copy).golden()


def test_sums():
    """Of a sum of outputs the difference of the mean counts, and of large numbers the
    relative one."""
    state = np.array(
        [[0.5, 0.5, 1_000.0, 300.0]], np.float32
    )  # hidden, sum, count, other
    answers = Golden(
        np.zeros((1, 1, 1), np.float32),
        np.array([1], np.int32),
        np.zeros((1, 2), np.float32),
        state,
    )
    for change, sums, difference in (
        ([0.01, 0, 0, 0], slice(1, 2), 0.01),
        ([0, 0.01, 0, 0], slice(0), 0.01),
        ([0, 0.01, 0, 0], slice(1, 2), 1e-5),
        ([0, 0, 0, 0.3], slice(1, 2), 1e-3),
    ):

        def step(frames, lengths, before, change=change):
            return answers.probabilities, state + np.float32(change)

        np.testing.assert_allclose(
            answers.difference(step, sums), difference, rtol=1e-2
        )
