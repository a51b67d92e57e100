"""The plots: legible numbers and names, scales that tell shares apart, honest curves."""

import itertools
from dataclasses import replace

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from model.report import plots
from tests.model.report.test_report import make_report


@pytest.fixture(autouse=True)
def style():
    with matplotlib.style.context(["default", plots.STYLE]):
        yield


def confusion_of(rows):
    """The matrix of these counts, drawn."""
    classes = tuple(f"class {index}" for index in range(len(rows)))
    metrics = make_report(classes).parts["test"]
    figure = plots.confusion(replace(metrics, confusion=rows), classes, "test part")
    FigureCanvasAgg(figure).draw()
    return figure


def luminance(colour):
    return float(np.dot([0.2126, 0.7152, 0.0722], np.array(to_rgb(colour[:3])) ** 2.2))


def texts(figure):
    """All texts that are not empty, with the boxes that they cover."""
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text().strip() and text.get_visible():
            yield text.get_text(), text.get_window_extent()


def cells(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_confusion_scales():
    """83 % right looks unlike 100 %, 98 % unlike 100 %, and 0.5 % wrong unlike none."""
    rows = [[83, 17, 0], [0, 100, 0], [1, 3, 196]]
    right, wrong = confusion_of(rows).axes[0].images
    shades = [luminance(c) for c in right.to_rgba(np.array([83.0, 98, 100]))]
    assert shades[0] > 2.5 * shades[2]
    assert shades[1] > 1.25 * shades[2]
    none, few, some = (luminance(c) for c in wrong.to_rgba(np.array([0.0, 0.5, 17])))
    assert none - few > 0.05
    assert few - some > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 12, 13, 20])
def test_confusion_numbers(size):
    """Up to 20 classes each cell has its number, in a colour that can be read, and no
    text covers another."""
    rows = np.full((size, size), 3) + np.eye(size, dtype=int) * 996
    rows[0, 0] = 10**6
    figure = confusion_of(rows.tolist())
    assert len(cells(figure)) == size**2
    assert all(text not in ("0", "100", "0.0", "100.0") for text in cells(figure))
    for (name, box), (other, second) in itertools.combinations(texts(figure), 2):
        assert not box.overlaps(second), (name, other)


def test_confusion_of_many():
    """With more classes there is no number, and no class's name covers another's."""
    figure = confusion_of(np.eye(60, dtype=int).tolist())
    assert cells(figure) == []
    for (name, box), (other, second) in itertools.combinations(texts(figure), 2):
        assert not box.overlaps(second), (name, other)


def reliability_of(counts):
    """The reliability diagram of bins with these numbers of predictions, drawn."""
    metrics = make_report(("no", "yes")).parts["test"]
    bins = [
        {
            "from": at / 15,
            "to": (at + 1) / 15,
            "confidence": (at + 0.5) / 15,
            "accuracy": 0.5,
            "count": count,
        }
        for at, count in enumerate(counts)
    ]
    metrics = replace(metrics, reliability=bins)
    figure = plots.reliability(metrics, metrics, "test part", "sequence")
    FigureCanvasAgg(figure).draw()
    return figure


def test_reliability():
    """A curve has a point for each bin with enough predictions."""
    curve, bars = reliability_of([1, 5, 4, 30, 900]).axes
    assert [len(line.get_xdata()) for line in curve.lines] == [2, 3, 3]
    assert not curve.texts
    assert len(bars.patches) == 10


def test_reliability_of_few():
    """With too few points for a curve the plot says so, and stays in shape."""
    figure = reliability_of([2, 4, 9, 7])
    curve, bars = figure.axes
    assert [len(line.get_xdata()) for line in curve.lines] == [2, 0, 0]
    (text,) = curve.texts
    assert "Too few sequences for a curve" in text.get_text()
    assert "there are 2" in text.get_text()
    assert curve.get_window_extent().height > 200
    assert curve.get_window_extent().contains(*text.get_window_extent().min)
    ticks = [label.get_text() for label in bars.get_yticklabels()]
    assert len(set(ticks)) == len(ticks) > 2
