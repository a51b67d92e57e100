"""The answers to all sequences of a file: agreement, the table, the download, colours."""

import csv
import io
import json
import subprocess
import sys

import pytest

from service.settings import Settings
from tests.browser.browser import BUNDLES, choose, drop, opened, wait_for
from tests.browser.inputs import sequences_of, vowels_csv
from tests.support.servers import ROOT, running

pytestmark = pytest.mark.browser
MOST = 3  # sequences in a request, where that is limited


def download(page):
    """The rows of the downloaded answers."""
    link = page.locator("#answers-download")
    link.wait_for()
    with page.expect_download() as file:
        link.click()
    text = file.value.path().read_text(encoding="utf-8")
    return file.value.suggested_filename, list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def answered(browser, service):
    """The page with the answers to all test sequences of `vowels`, of which 5 are wrong."""
    with opened(browser, service.url) as page:
        choose(page, "vowels")
        drop(page, "test part.csv", vowels_csv(370))
        page.locator("#answers-said", has_text="agree").wait_for()
        yield page


def test_agreement(answered):
    """The share of sequences that agree with the file's labels is the report's."""
    said = answered.locator("#answers-said").inner_text()
    assert said == "98.6 % agree with the labels in the input: 365 of 370 sequences."
    source = answered.locator("#sequence-source").inner_text()
    assert source.startswith("test part.csv: 370 sequences, ")
    assert source.endswith("vowels does not use the column “note”.")


def test_wrong(answered):
    """Wrong answers are marked, listed alone, and chosen one after the other."""
    answered.locator("#answers-wrong-only").check()
    rows = answered.locator("#answers-table tbody tr")
    assert rows.count() == 5
    assert all("✗" in text for text in rows.all_inner_texts())
    button = answered.locator("#answers-next-wrong")
    assert button.inner_text() == "Next wrong (5)"
    for at in range(5):
        button.click()
        answered.locator("#answers-table tr[aria-current]").wait_for()
        wait_for(answered, "sequence", "✗ The input says ")
        name = rows.nth(at).locator("button").inner_text()
        answered.locator("#sequence-which", has_text=f"{name}: ").wait_for()
    answered.locator("#answers-wrong-only").uncheck()
    assert rows.count() == 370
    assert answered.locator("#answers-table [aria-current]").evaluate(
        "(row) => {"
        " const list = document.getElementById('answers-list').getBoundingClientRect();"
        " const { top, bottom } = row.getBoundingClientRect();"
        " return list.top <= top && bottom <= list.bottom; }"
    )


def test_download(answered):
    """The download has a row for each sequence, with all probabilities."""
    name, rows = download(answered)
    assert name == "test part-answers.csv"
    classes = list("123456789")
    shares = [f"probability_{name}" for name in classes]
    assert list(rows[0]) == ["sequence", "label", "probability", "true_label", *shares]
    assert [row["sequence"] for row in rows] == [f"s{at}" for at in range(370)]
    assert sum(row["label"] != row["true_label"] for row in rows) == 5
    for row in rows:
        by_class = {name: float(row[f"probability_{name}"]) for name in classes}
        assert max(by_class, key=by_class.get) == row["label"]
        assert float(row["probability"]) == max(by_class.values())


def test_as_predict(answered, service, tmp_path):
    """The download is the table that `unrolled predict` writes for the same file."""
    file, table = tmp_path / "test.csv", tmp_path / "answers.csv"
    file.write_text(vowels_csv(370))
    command = [sys.executable, "-m", "unrolled", "predict", file, "-o", table]
    command += ["--model", "vowels", "--url", service.url]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    with table.open(encoding="utf-8") as lines:
        expected = list(csv.DictReader(lines))
    _, rows = download(answered)
    assert list(rows[0]) == list(expected[0])
    for row, other in zip(rows, expected, strict=True):
        for name, cell in row.items():
            if name.startswith("probability"):
                assert float(cell) == pytest.approx(float(other[name]), abs=1e-6)
            else:
                assert cell == other[name]


def test_swapped_columns(answered, page):
    """A file whose columns have another order has the same answers."""
    choose(page, "vowels")
    drop(page, "swapped.csv", vowels_csv(370, reverse=True))
    assert download(page)[1] == download(answered)[1]


def test_steps(page):
    """A labelling network: agreement in steps, a row for each step in the download."""
    choose(page, "letters")
    words = list(sequences_of("letters", 12))
    wrong = ["z", *words[0][1][1:]]
    lines = [{"id": "first", "frames": words[0][0], "labels": wrong}]
    lines += [{"frames": frames, "labels": labels} for frames, labels in words[1:]]
    drop(page, "words.jsonl", "\n".join(map(json.dumps, lines)))
    steps = sum(len(labels) for _, labels in words)
    text = f"{steps - 1} of {steps} steps"
    page.locator("#answers-said", has_text=text).wait_for()
    page.get_by_text("1 of 9 steps differ from the input: step 1.").wait_for()
    model, labels = page.locator(".ribbon").all()
    assert model.locator(".run").first.inner_text() == words[0][1][0]
    assert labels.locator(".run").first.inner_text() == "z"
    _, rows = download(page)
    assert len(rows) == steps
    head = ["sequence", "step", "label", "probability", "true_label", "probability_a"]
    assert list(rows[0])[:6] == head
    assert [row["true_label"] for row in rows[: len(wrong)]] == wrong
    assert [row["step"] for row in rows[:2]] == ["1", "2"]


def test_unknown_label(page):
    """Labels that are no classes of the model are named."""
    choose(page, "vowels")
    drop(page, "odd.csv", vowels_csv(3).replace(",1,x,", ",one,x,"))
    page.locator("#answers-said", has_text="vowels has no class “one”.").wait_for()
    assert page.locator("#answers-said").inner_text().startswith("0 % agree")


def test_colours(page):
    """A class has one colour: in the ribbon, the chart, and the table of answers."""
    choose(page, "letters")
    words = list(sequences_of("letters", 2))
    lines = [{"frames": frames, "labels": labels} for frames, labels in words]
    drop(page, "words.jsonl", "\n".join(map(json.dumps, lines)))
    page.locator("#answers-said", has_text="agree").wait_for()
    colours = "(e) => [e.textContent, getComputedStyle(e).backgroundColor]"
    ribbon = dict(e.evaluate(colours) for e in page.locator(".run").all())
    marker = (
        "(e) => [e.querySelector('.u-label').textContent,"
        " getComputedStyle(e.querySelector('.u-marker')).backgroundColor]"
    )
    legend = page.locator("#sequence-classes .u-series").all()[1:]
    chart = dict(e.evaluate(marker) for e in legend)
    shared = set(ribbon) & set(chart)
    assert len(shared) >= 4
    assert {name: ribbon[name] for name in shared} == {n: chart[n] for n in shared}
    strip = "(e) => [...e.children].map((c) => getComputedStyle(c).backgroundColor)"
    first = page.locator("#answers-table .strip").first.evaluate(strip)
    runs = page.locator(".ribbon").first.locator(".run").all_inner_texts()
    assert first == [ribbon[name] for name in runs]


def test_many_classes(page):
    """Of 42 classes no two have the same colour and dashes."""
    looks = page.evaluate(
        "() => import('/playground/palette.js').then(({ stroke, dash }) =>"
        " Array.from({ length: 42 }, (_, at) => `${stroke(at)} ${dash(at)}`))"
    )
    assert len(set(looks)) == 42


def test_feature_scales(page):
    """Each feature has its own scale and its name; many are a heat map."""
    choose(page, "vowels")
    names = ",".join(f"cepstrum {n}" for n in range(1, 13))
    rows = [",".join(str(step * 10.0**-n) for n in range(12)) for step in (1, 2, 3)]
    drop(page, "scales.csv", "\n".join([names, *rows]))
    wait_for(page, "sequence", "vowels: ")
    heads = page.locator(".feature").all_inner_texts()
    assert heads[0].startswith("cepstrum 1")
    assert "1 to 3" in heads[0]
    assert "0.01 to 0.03" in heads[2]
    for chart in page.locator("#sequence-features .plot").all():
        scale = chart.evaluate("(e) => [e.plot.scales.y.min, e.plot.scales.y.max]")
        assert scale[1] == pytest.approx(3 * scale[0])
    choose(page, "digits")
    page.locator("#sequence-sample").click()
    page.locator("#sequence-features .map").wait_for()
    assert page.locator("#sequence-features .plot").count() == 0


def test_limits(browser):
    """Requests stay under the service's limits, and wait while it is overloaded."""
    settings = Settings(port=0, bundles=BUNDLES, max_sequences=MOST)
    with (
        running(settings) as service,
        opened(browser, service.url, complains=["503", "429"]) as page,
    ):
        sizes = []
        busy = [(503, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]

        def answer(route):
            sizes.append(len(route.request.post_data_json["sequences"]))
            if len(sizes) > 2 and busy:
                status, headers = busy.pop()
                return route.fulfill(
                    status=status, headers=headers, json={"title": "busy"}
                )
            return route.continue_()

        page.route("**/classify", answer)
        choose(page, "vowels")
        drop(page, "some.csv", vowels_csv(10))
        page.locator("#answers-said", has_text="of 10 sequences").wait_for()
        assert max(sizes) == MOST
        assert not busy
        assert len(download(page)[1]) == 10
        drop(page, "long.csv", "\n".join(["1," * 11 + "1"] * 10_001))
        page.get_by_text("“sequence 1” has 10001 steps").wait_for()
