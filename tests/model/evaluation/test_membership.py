"""The sequences that a bundle was trained on are recognised."""

from dataclasses import replace

import numpy as np
import pytest

from model.bundle import bundle
from model.datasets.dataset import TEST, TRAIN, UNASSIGNED, VALIDATION
from model.evaluation import evaluation, membership
from tests.support import exports


@pytest.fixture(params=["classify-gru", "label-lstm"])
def exported(request):
    return exports.load()[request.param]


def test_parts(exported):
    """Each sequence is recognised in any order, with other labels and parts."""
    data = exported.dataset
    order = np.random.default_rng(0).permutation(len(data))
    shuffled = data.take(order)
    shuffled = replace(shuffled, split=np.full(len(data), TEST))
    parts = membership.parts_in_training(exported.bundle, shuffled)
    expected = np.where(data.split == TEST, UNASSIGNED, data.split)
    np.testing.assert_array_equal(parts, expected[order])
    changed = replace(shuffled, frames=shuffled.frames + 1)
    parts = membership.parts_in_training(exported.bundle, changed)
    assert set(parts.tolist()) == {UNASSIGNED}


def test_evaluate(exported):
    """The metrics of the new sequences are those of the test part."""
    result = membership.evaluate(exported.bundle, exported.dataset)
    assert result.counts == {"trained_on": 15, "chose_weights": 12, "new": 9}
    whole = evaluation.evaluate_bundle(exported.bundle, exported.dataset)
    test = evaluation.evaluate_bundle(exported.bundle, exported.dataset.part("test"))
    assert result.metrics == whole
    assert result.new.confusion == test.confusion
    for name, count in (("train", 0), ("test", 9)):
        part = membership.evaluate(exported.bundle, exported.dataset.part(name))
        assert part.new is None
        assert part.counts["new"] == count


def without_hashes(exported):
    """The same bundle, as one without hashes describes itself."""
    verified = exported.bundle
    files = dict(verified.metadata.files)
    del files[bundle.SEQUENCES.as_posix()]
    metadata = verified.metadata.model_copy(update={"files": files})
    return replace(verified, metadata=metadata)


def test_without_hashes():
    """A bundle without hashes knows its own data set as a whole, and no other."""
    exported = exports.load()["classify-gru"]
    data, verified = exported.dataset, without_hashes(exported)
    parts = membership.parts_in_training(verified, data)
    assert [int((parts == p).sum()) for p in (TRAIN, VALIDATION, UNASSIGNED)] == [
        15,
        12,
        9,
    ]
    other = membership.evaluate(verified, data.take(np.arange(9)))
    assert (other.new, other.counts) == (None, None)


def test_many_sequences(tmp_path, monkeypatch):
    """A data set of too many sequences leaves no file."""
    data = exports.load()["classify-gru"].dataset
    monkeypatch.setattr(membership, "MAX_SEQUENCES", 26)
    membership.save(tmp_path / "a.npy", data)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(membership, "MAX_SEQUENCES", 27)
    membership.save(tmp_path / "a.npy", data)
    assert (tmp_path / "a.npy").stat().st_size < bundle.MAX_SEQUENCES
