"""The report of a search."""

import html
import json
import re

import pytest

from model.config import Config
from model.search import report, space
from model.search.results import Search, Trial
from tests.support.networks import make_dataset

COMMAND = "unrolled train 'a & b.csv' --hidden 32"


@pytest.fixture
def search(tmp_path):
    """A search with a complete, a failed and some other trials."""
    config = Config(name="walks", data={"source": "a & b.csv"})
    searched = space.build(config, make_dataset(counts=(24, 0, 0)), set())
    start = searched.starts[0]
    trials = [
        Trial(n, "complete", start | {"hidden": 15 + n}, 1 / n, 50.0 - n, 60.0)
        for n in range(1, 12)
    ]
    trials.append(Trial(12, "pruned", start, 2.0, 60.0, 10.0))
    trials.append(Trial(13, "failed", start, None, None, 1.0, "Error: <no> room"))
    importance = {"hidden": 0.75, "learning_rate": 0.25}
    return Search(tmp_path, searched, tuple(trials), importance)


def test_page(search):
    """The page has the best settings, the command, three plots and all trials; it needs no
    other file, and nothing in it is read as HTML."""
    page = report.write(search, COMMAND).read_text(encoding="utf-8")
    assert html.escape(COMMAND) in page
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img") == 3
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert page.count("<tr") == 1 + 13
    assert '<tr class="best"><td>11</td>' in page
    assert "Error: &lt;no&gt; room" in page
    assert html.escape(space.describe(search.best.settings)) in page


def test_numbers(search):
    """The JSON has the same numbers, and the settings of the best trial."""
    report.write(search, COMMAND)
    values = json.loads((search.folder / "search.json").read_text(encoding="utf-8"))
    assert values["best"] == 11
    assert values["command"] == COMMAND
    assert values["settings"]["network"]["hidden"] == 26
    assert values["importance"] == search.importance
    assert [trial["state"] for trial in values["trials"][10:]] == [
        *("complete", "pruned", "failed")
    ]


def test_summary(search):
    """A line says how many trials there were and which is the best."""
    text = report.summary(search)
    assert text.startswith("13 trials in 11 min 11 s, 1 stopped early, 1 failed; best:")
    assert "trial 11, cost 0.0909, error 39.00 %" in text


@pytest.mark.parametrize("count", [0, 1])
def test_few_trials(search, count):
    """A search that has just begun has a report, too."""
    few = Search(search.folder, search.space, search.trials[:count], {})
    page = report.write(few, None).read_text(encoding="utf-8")
    assert page.count("<img") == 2 * count
