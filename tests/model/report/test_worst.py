"""The page of the worst answers."""

import numpy as np
import pytest

from model.datasets import builtin
from model.datasets.text import TextOptions
from model.evaluation.evaluation import Predictions
from model.report import worst
from tests.support.bundles import make_metadata, write_conll, write_csv
from tests.support.networks import make_dataset


def predict(part, wrong):
    """Logits that are sure, and wrong for these answers."""
    scores = np.full((len(part.targets), len(part.classes)), -2.0)
    targets = part.targets.copy()
    targets[wrong] = (targets[wrong] + 1) % len(part.classes)
    scores[np.arange(len(scores)), targets] = 2
    return Predictions(scores, part.targets, np.ones(len(scores)))


def page(tmp_path, part, answers):
    metadata = make_metadata(part.task, classes=part.classes)
    path = worst.write(tmp_path, metadata, "test", part, answers)
    return path.read_text(encoding="utf-8") if path else ""


def test_words(tmp_path):
    """Wrong words are bold; the sentence with most of them is the first."""
    data = builtin.load_source(write_conll(tmp_path / "a.conll"))
    part = data.part("test")
    last = int(part.offsets[-1]) - 1
    rows = page(tmp_path, part, predict(part, [0, last, last - 1])).splitlines()[6:]
    assert len(rows) == 2
    assert rows[0].count("**") == 4
    assert rows[0].startswith(f"| {part.ids[-1]} | ")
    assert " → " in rows[0]
    assert rows[1].count("**") == 2


@pytest.mark.parametrize("kind", ["tokens", "characters"])
def test_texts(tmp_path, kind):
    options = TextOptions(text="body", label="kind", kind=kind)
    part = builtin.load_source(write_csv(tmp_path / "a.csv"), text=options).part("test")
    (row,) = page(tmp_path, part, predict(part, [3])).splitlines()[6:]
    assert "| turn o" in row
    assert "switch-on → switch-off, 0." in row or "switch-off → switch-on, 0." in row


def test_frames(tmp_path):
    """Sequences of numbers have their id and length; without mistakes there is no page."""
    part = make_dataset(counts=(4, 0, 4)).part("test")
    text = page(tmp_path, part, predict(part, [1]))
    assert f"| {part.ids[1]} | " in text
    assert f"{part.lengths[1]} steps |" in text
    assert page(tmp_path, part, predict(part, [])) == ""
