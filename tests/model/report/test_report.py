"""The report: plots, numbers and the card."""

import json
import re
import string
from dataclasses import asdict, replace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from model.bundle.metadata import Frames, Metadata, Normalisation, TrainingRecord
from model.evaluation import calibration, evaluation
from model.evaluation.comparison import Baseline, Difference
from model.report import card, report
from model.training.runs import Epoch

PLOTS = ("history", "confusion", "reliability", "length")
LETTERS = tuple(string.ascii_lowercase)
DIGITS = tuple(string.digits)
HUNDRED = tuple(f"number {index}" for index in range(100))


def make_parts(classes, parts, temperature, absent):
    """Figures of random answers, most of them right."""
    rng = np.random.default_rng(0)
    there = [index for index, name in enumerate(classes) if name != absent]
    figures = {}
    for part in parts:
        targets = rng.choice(there, 500)
        logits = rng.normal(size=(500, len(classes)))
        logits[np.arange(500), targets] += 3
        scores = calibration.softmax(logits / temperature)
        answers = evaluation.Predictions(scores, targets, rng.integers(1, 30, 500))
        figures[part] = evaluation.compute_metrics(answers, classes)
    return figures


def make_report(classes, *, parts=("train", "validation", "test"), absent=None):
    epochs = [
        Epoch(n, 2 / n, 60 / n, 3 / n, 70 / n, 0.001, n == 4) for n in (1, 2, 3, 4)
    ]
    after = make_parts(classes, parts, 1.5, absent)
    return report.Report(epochs, after, make_parts(classes, parts, 1.0, absent))


def make_metadata(classes, task="classify", **changes):
    training = TrainingRecord(
        source="made",
        data="0" * 64,
        seed=7,
        validation_fraction=0.15,
        test_fraction=0.15,
        epochs=4,
        best_epoch=4,
        longest=29,
        created="2026-01-01T00:00:00Z",
        parts={},
        calibration_error_before=1.0,
    )
    values = {
        "name": "made",
        "version": "3",
        "task": task,
        "input": Frames(features=2, names=("x0", "x1")),
        "classes": classes,
        "cell": "lstm",
        "layers": 1,
        "hidden": 8,
        "bidirectional": False,
        "reset_after": True,
        "dropout": 0.5,
        "state_size": 16,
        "normalisation": Normalisation(mean=(0.5, 0.0), scale=(2.0, 1.0)),
        "temperature": 1.5,
        "training": training,
    }
    return Metadata(**values | changes)


def read_metrics(folder):
    """The numbers, read as strictly as JSON is defined."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def tables(text):
    """Each run of table rows, split where a bar isn't escaped."""
    lines = "\n".join(line if line.startswith("|") else "" for line in text.split("\n"))
    return [
        [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.strip().split("\n")]
        for table in re.split(r"\n{2,}", lines)
        if table.strip()
    ]


def make_card(metadata, values, *, shown="test"):
    return card.text(metadata, values.parts, values.before, shown=shown)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of the report of ten classes."""
    folder = tmp_path_factory.mktemp("digits")
    report.write(folder, make_metadata(DIGITS), make_report(DIGITS))
    return folder


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        pytest.param("classify", ("no", "yes"), id="two-classes"),
        pytest.param("label", LETTERS, id="letters"),
        pytest.param("classify", HUNDRED, id="hundred-classes"),
    ],
)
def test_files(tmp_path, task, classes):
    """Six files, of which the plots are whole, not blank, and small."""
    report.write(tmp_path, make_metadata(classes, task), make_report(classes))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.png" for name in PLOTS} | {"metrics.json", "card.md"}
    for name in PLOTS:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < 60_000
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 300 < min(image.size) <= max(image.size) < 1100
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_metrics(digits):
    """The numbers are the figures' own, before and after calibration."""
    values, metrics = make_report(DIGITS), read_metrics(digits)
    assert metrics["unit"] == "sequence"
    assert metrics["classes"] == list(DIGITS)
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2, 3, 4]
    assert set(metrics["parts"]) == {"train", "validation", "test"}
    for name, part in metrics["parts"].items():
        after, before = values.parts[name], values.before[name]
        for key in ("count", "error", "accuracy", "macro_f1", "class_accuracy"):
            assert part[key] == getattr(after, key)
        assert part["confusion"] == after.confusion
        assert part["by_length"] == after.by_length
        assert part["intervals"] == asdict(after.intervals)
        for key in ("calibration_error", "reliability"):
            both = {"before": getattr(before, key), "after": getattr(after, key)}
            assert part[key] == both


def test_deterministic(tmp_path, digits):
    """The same figures give the same bytes, whatever the user's plot style."""
    with matplotlib.rc_context({"font.size": 24, "text.usetex": True}):
        report.write(tmp_path, make_metadata(DIGITS), make_report(DIGITS))
    for path in digits.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_meagre(tmp_path):
    """One epoch whose cost is no number, and one length: null, and all plots."""
    values = make_report(DIGITS)
    epoch = replace(values.history[0], cost=float("nan"), validation_cost=float("inf"))
    groups = [{"shortest": 28, "longest": 28, "count": 500, "accuracy": 100.0}]
    parts = {
        name: replace(part, by_length=groups) for name, part in values.parts.items()
    }
    values = report.Report([epoch], parts, values.before)
    report.write(tmp_path, make_metadata(DIGITS), values)
    (first,) = read_metrics(tmp_path)["history"]
    assert first["cost"] is None
    assert first["validation_cost"] is None
    assert first["validation_error"] == epoch.validation_error


def test_without_test_part(tmp_path):
    """Without a test part the report is of validation, and the card says so."""
    values = make_report(DIGITS, parts=("validation",))
    report.write(tmp_path, make_metadata(DIGITS), values)
    assert set(read_metrics(tmp_path)["parts"]) == {"validation"}
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "there was no test part" in text
    assert "## Plots, validation part" in text


def test_cross_validation(tmp_path):
    """Without a validation part the report is of the cross-validation, whose answers
    calibrate the network."""
    values = make_report(DIGITS, parts=("train", "cross_validation"))
    settings = {"training": {"folds": 5, "repeats": 3}}
    metadata = make_metadata(DIGITS)
    record = metadata.training.model_copy(update={"settings": settings})
    metadata = metadata.model_copy(update={"training": record})
    none = {"validation_cost": None, "validation_error": None}
    values = replace(values, history=[replace(e, **none) for e in values.history])
    report.write(tmp_path, metadata, values)
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    for line in (
        "| cross-validation | 500 |",
        "The ECE of the cross-validation rests on 500 answers.",
        "## Plots, cross-validation\n",
        "of the cross-validation (5 folds, repeated 3 times) is\n",
        "fitted on the cross-validation: right on average",
    ):
        assert line in text
    assert "validation part" not in text
    both = make_report(DIGITS, parts=("train", "cross_validation", "test"))
    text = make_card(make_metadata(DIGITS), both)
    assert "the test part influenced nothing" in text
    assert "roups" not in text


def test_groups():
    """The card says how many groups were seen, and what one of them says."""
    values = make_report(DIGITS, parts=("train", "cross_validation"))
    for count, says in ((3, ""), (1, " has one, which says nothing about others.")):
        parts = {name: replace(m, groups=count) for name, m in values.parts.items()}
        text = make_card(
            make_metadata(DIGITS), replace(values, parts=parts), shown="train"
        )
        assert f"| cross-validation | 500 | {count} |" in text
        assert "The intervals are those between groups." in text
        assert says in text
        assert "trained without the sequence's group" in text


@pytest.mark.parametrize("task", ["classify", "label"])
def test_baselines(tmp_path, task):
    """The card and the numbers compare the network with simpler predictors; the card says
    plainly if it doesn't beat one."""
    values = make_report(DIGITS)
    assert "## Baselines" not in make_card(make_metadata(DIGITS, task), values)

    def beside(**changes):
        baselines = {
            name: Baseline(
                400, 1_200, 30.0, [26.0, 35.0], Difference(low + 1, low, low + 2)
            )
            for name, low in changes.items()
        }
        part = replace(values.parts["test"], baselines=baselines)
        return replace(values, parts={**values.parts, "test": part})

    better = beside(logistic_regression=-9, majority=-50)
    text = make_card(make_metadata(DIGITS, task), better)
    assert (
        "\nThe network beats logistic regression and the majority class beyond chance."
        in text
    )
    assert (
        "| Majority class | 30.00 % (26.00 to 35.00) | – | -49.00 (-50.00 to -48.00) |"
        in text
    )
    assert "answered 400; they learnt from 1,200" in text
    assert "\n**" not in text

    level = beside(logistic_regression=-1, majority=-50)
    text = make_card(make_metadata(DIGITS, task), level)
    assert (
        "**The network does not beat logistic regression beyond chance (+0.00" in text
    )
    report.write(tmp_path, make_metadata(DIGITS, task), level)
    numbers = read_metrics(tmp_path)["parts"]
    assert numbers["train"]["baselines"] == {}
    logistic = numbers["test"]["baselines"]["logistic_regression"]
    assert (logistic["error"], logistic["difference"]["low"]) == (30.0, -1)


def test_odd_names(tmp_path):
    """No class name breaks a table, a plot or the JSON."""
    odd = (
        "a|b",
        "_c_",
        "*d*",
        "e\nf",
        " ",
        "`g",
        "<h>",
        "$i$",
        "\\|",
        "日本",
        "k" * 99,
    )
    report.write(tmp_path, make_metadata(odd), make_report(odd))
    assert read_metrics(tmp_path)["classes"] == list(odd)
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    for table in tables(text):
        assert len({len(row) for row in table}) == 1
    for name in (r"a\|b", r"\_c\_", r"\*d\*", "e f", "␣", r"\`g", r"\<h\>", r"\\\|"):
        assert f" {name} ·" in text


def test_absent_class(tmp_path):
    """A class that a part lacks is null in the numbers and named on the card."""
    classes = (*DIGITS, "ghost")
    values = make_report(classes, absent="ghost")
    report.write(tmp_path, make_metadata(classes), values)
    assert read_metrics(tmp_path)["parts"]["test"]["class_accuracy"]["ghost"] is None
    assert "Not in the test part: ghost." in make_card(make_metadata(classes), values)


@pytest.mark.parametrize("task", ["classify", "label"])
def test_card(task):
    """The card shows the plots, each part's error, and how to call the network."""
    values = make_report(LETTERS)
    text = make_card(make_metadata(LETTERS, task), values)
    for name in PLOTS:
        assert re.search(rf"^!\[[^]]+\]\({name}\.png\)$", text, re.MULTILINE)
    for name, part in values.parts.items():
        before = values.before[name].calibration_error
        low, high = part.intervals.error
        assert f"{part.error:.2f} % ({low:.2f} to {high:.2f})" in text
        assert f" {part.calibration_error_by_chance:.2f} % |" in text
        assert f"{before:.2f} → {part.calibration_error:.2f} %" in text
    assert f"localhost:8000/{task} " in text
    assert '"model": "made"' in text
    assert "up to 29 steps" in text


def test_worst():
    """The classes and pairs that err most are named, the worst first."""
    values = make_report(DIGITS)
    *_, classes, confusions = tables(make_card(make_metadata(DIGITS), values))
    part = values.parts["test"]
    accuracy = sorted(part.class_accuracy, key=part.class_accuracy.get)
    assert [row[0].strip() for row in classes[2:]] == accuracy[:5]
    wrong = np.array(part.confusion) * (1 - np.eye(10, dtype=int))
    counts = [int(row[2]) for row in confusions[2:]]
    assert counts == np.sort(wrong, axis=None)[::-1][:5].tolist()
    for true, taken, count, _ in confusions[2:]:
        assert wrong[int(true), int(taken)] == int(count)


def test_classes():
    """Precision, recall and F1 of each class are shown; of many, the worst of them."""
    values = make_report(DIGITS)
    part = values.parts["test"]
    text = make_card(make_metadata(DIGITS), values)
    (shown,) = [t for t in tables(text) if " Precision " in t[0]]
    for row, (name, m) in zip(shown[2:], part.by_class.items(), strict=True):
        cells = [cell.strip() for cell in row]
        shares = [f"{share:.2f} %" for share in (m.precision, m.recall, m.f1)]
        assert cells == [name, f"{m.count:,}", *shares]
    text = make_card(make_metadata(HUNDRED), make_report(HUNDRED))
    (shown,) = [t for t in tables(text) if " Precision " in t[0]]
    assert len(shown) == 2 + 50
    assert "The 50 with the lowest F1 are shown." in text


def test_faultless():
    """A part without a mistake has a card that says so."""
    rows = np.arange(40) % 4
    answers = evaluation.Predictions(np.eye(4)[rows], rows, np.full(40, 5))
    figures = {"test": evaluation.compute_metrics(answers, tuple("abcd"))}
    values = report.Report([], figures, figures)
    assert "None in the test part." in make_card(make_metadata(tuple("abcd")), values)


def test_whole_sequences():
    """The card of a bidirectional network says that it needs whole sequences."""
    metadata = make_metadata(DIGITS, bidirectional=True, state_size=0)
    text = make_card(metadata, make_report(DIGITS))
    assert "needs whole sequences" in text
    assert "Frames a step" not in text


def test_stack():
    """The card of a network that stacks frames says how many."""
    metadata = make_metadata(DIGITS, stack=8, state_size=16 + 7 * 2 + 1)
    text = make_card(metadata, make_report(DIGITS))
    assert re.search(r"\| Frames a step +\| 8 +\|", text)
