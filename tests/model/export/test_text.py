"""Bundles of networks that read text or records: both formats, int8, and ids out of
range."""

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.operators import allowlist
from model.network import reload
from tests.support.bundles import cached, train_text_bundles


@pytest.fixture(scope="module")
def trained():
    return cached("trained-text", train_text_bundles)


@pytest.fixture(params=["names", "commands", "visits", "calls"])
def exported(text_bundles, request):
    return bundle.read(text_bundles / request.param / "1")


def test_formats(exported):
    """SavedModel and ONNX give the same answers: in one call, and step by step."""
    allowlist.check(exported)
    steps = [
        reload.saved_model(exported.folder),
        reload.onnx(exported.folder / bundle.NETWORK),
    ]
    random = np.random.default_rng(0)
    sizes = exported.metadata.input.sizes
    sizes = np.maximum(sizes, 2)  # numbers have no ids
    frames = random.integers(0, sizes, (5, 9, len(sizes))).astype(np.float32)
    lengths = np.array([1, 9, 4, 7, 2], np.int32)
    state = np.zeros((5, exported.metadata.state_size), np.float32)
    (first, after), (second, other) = (s(frames, lengths, state) for s in steps)
    if exported.metadata.task == "label":
        valid = np.arange(9) < lengths[:, None]
        first, second = first[valid], second[valid]
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(after, other, atol=1e-5)


def test_out_of_range(exported):
    """An id that doesn't exist reads another one, and changes nothing for the rest of the
    batch."""
    sizes = np.array(exported.metadata.input.sizes)
    lengths = np.array([3, 3], np.int32)
    state = np.zeros((2, exported.metadata.state_size), np.float32)
    good = np.ones((2, 3, len(sizes)), np.float32)
    for step in (
        reload.saved_model(exported.folder),
        reload.onnx(exported.folder / bundle.NETWORK),
    ):
        expected = step(good, lengths, state)[0][0]
        for wild in (-5.0, 1e9, float(sizes.max())):
            frames = good.copy()
            frames[1] = wild
            answer = step(frames, lengths, state)[0]
            np.testing.assert_allclose(answer[0], expected, atol=1e-6)
            assert np.isfinite(answer).all()


def test_int8(text_bundles):
    """LSTMs have int8 weights, whose answers don't depend on the batch."""
    for name in ("names", "calls"):
        verified = bundle.read(text_bundles / name / "1")
        assert verified.metadata.int8 is not None
        step = reload.onnx(verified.folder / bundle.INT8)
        golden = verified.golden(precision="int8")
        assert golden.difference(step) == 0


@pytest.mark.slow
def test_record(trained):
    """The metadata say what was measured on text, and the card shows it."""
    names, commands = (
        bundle.read(trained / name / "1") for name in ("names", "commands")
    )
    record = names.metadata.training.text
    assert record.parts["test"].error_new is not None
    assert commands.metadata.training.settings["training"]["prefixes"] is True
    assert len(commands.metadata.training.text.prefixes["test"].errors) == 4
    card = (commands.folder / bundle.REPORT / "card.md").read_text(encoding="utf-8")
    assert "Unfinished sequences of the test part" in card
    assert "logistic regression" in card


@pytest.mark.slow
def test_record_of_records(trained):
    """The card has the columns, and an example of a request."""
    visits = bundle.read(trained / "visits" / "1")
    assert visits.metadata.training.text.parts["test"].tokens > 50
    assert visits.metadata.training.parts["test"].error < 20
    card = (visits.folder / bundle.REPORT / "card.md").read_text(encoding="utf-8")
    assert "| host | category | 4 listed, 3 numbers for each |" in card
    assert '"records": [[{"event": "..."' in card
    assert "one record at each step" in card
    assert "| Augmentation | none |" in card
