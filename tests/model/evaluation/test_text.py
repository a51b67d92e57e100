"""Metrics of text: new tokens, unfinished sequences, and baselines that read it."""

import numpy as np
import pytest

from model.datasets import builtin
from model.datasets.text import TextOptions
from model.evaluation import text
from model.evaluation.evaluation import Predictions
from tests.support.bundles import write_conll, write_csv


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = write_conll(tmp_path_factory.mktemp("names") / "names.conll")
    return builtin.load_source(path, validation=0.15)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    path = write_csv(tmp_path_factory.mktemp("commands") / "commands.csv")
    options = TextOptions(text="body", label="kind", kind="characters")
    return builtin.load_source(path, validation=0.15, text=options)


def test_new_tokens(names):
    """Tokens that training has not seen are counted, with the errors on both kinds."""
    part = names.part("test")
    seen = {names.strings[w] for w in names.part("train").words}
    new = np.array([names.strings[w] not in seen for w in part.words])
    scores = np.zeros((len(new), 3), np.float32)
    answers = np.where(new, (part.targets + 1) % 3, part.targets)
    scores[np.arange(len(new)), answers] = 1
    predictions = Predictions(scores, part.targets, np.ones(len(new)))
    result = text.parts(names, {"test": predictions})["test"]
    assert result.tokens == len(new)
    assert result.new == pytest.approx(100 * new.mean())
    assert (result.error_seen, result.error_new) == (0, 100)


def test_spans(names):
    """A span counts if its type and both ends are right."""
    part = names.part("test")
    scores = np.full((len(part.targets), 3), -9, np.float32)
    scores[np.arange(len(scores)), part.targets] = 9
    perfect = Predictions(scores, part.targets, np.ones(len(scores)))
    spans = text.parts(names, {"test": perfect})["test"].spans
    assert spans.spans == len(part)  # one name in each sentence
    assert (spans.precision, spans.recall, spans.f1) == (100, 100, 100)
    outside = names.classes.index("O")
    scores[0] = -9
    scores[0, outside] = 9  # the first name is missed
    missed = text.parts(names, {"test": perfect})["test"].spans
    assert missed.recall == pytest.approx(100 * (1 - 1 / len(part)), abs=1e-6)


def test_prefixes(commands):
    """An answer that is wrong until some step is decided after it."""
    part = commands.part("test").take([0, 1, 2])
    probabilities = np.zeros((part.lengths.sum(), 2), np.float32)
    for row, (start, length) in enumerate(
        zip(part.offsets, part.lengths, strict=False)
    ):
        target, wrong = part.targets[row], 4
        probabilities[start : start + length, target] = 1
        probabilities[start : start + wrong] = 0
        probabilities[start : start + wrong, 1 - target] = 1
    result = text.prefixes(part, probabilities)
    assert result.decided == 5
    assert result.errors[-1] == 0
    assert result.calibration_error == pytest.approx(100 * 12 / part.lengths.sum())


def test_baselines(names, commands):
    """They read the text: a token's usual label, and n-grams of letters."""
    for data, name in ((names, "frequent_label"), (commands, "logistic_regression")):
        predictors = text.baselines(data.part("train"))
        test = data.part("test")
        right = predictors[name](test) == test.targets
        majority = predictors["majority"](test) == test.targets
        assert right.mean() > 0.9 > majority.mean()
