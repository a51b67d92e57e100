"""Names as an attacker chooses them: they stay text, and the page keeps its layout."""

import csv
import io
import json
import shutil

import pytest

from model.bundle import bundle
from service.settings import Settings
from tests.browser.browser import (
    BUNDLES,
    DESKTOP,
    PHONE,
    choose,
    drop,
    go,
    opened,
    wait_for,
)
from tests.support.bundles import copy_bundle
from tests.support.servers import ROOT, running

pytestmark = pytest.mark.browser

HOSTILE = (
    '<img src=x onerror="window.hacked = 1">',
    '"><script>window.hacked = 1</script>',
    "' onmouseover='window.hacked = 1' x='",
    "javascript:window.hacked=1",
    "\u202edesrever",  # and all that follows, without isolation
    "\u2067\u200fשלום \u2066",
    "w" * 256,
    "two\nlines\r\n\tand a tab",
    "`${window.hacked = 1}` {{constructor}}",
    "__proto__",
)
SHIPPED = ("digits", "letters", "letters-live", "vowels", "intents", "tags")
INTRUDERS = (
    "() => [window.hacked, document.querySelectorAll('[src=x], [onmouseover]').length]"
)


def named(count: int) -> list[str]:
    """So many different hostile names."""
    return [
        name if at < len(HOSTILE) else f"{name[:250]}{at}"
        for at, name in zip(range(count), HOSTILE * count, strict=False)
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The service with the shipped bundles, all their names replaced, and a broken one."""
    root = tmp_path_factory.mktemp("hostile")
    for name in SHIPPED:
        source = BUNDLES / name / "1"
        metadata = json.loads((source / bundle.MARKER).read_text())
        classes = named(len(metadata["classes"]))
        training = metadata["training"] | {"source": HOSTILE[0] + HOSTILE[6]}
        changes = {"classes": classes, "training": training}
        if metadata["input"]["kind"] == "frames":
            names = named(metadata["input"]["features"])
            changes["input"] = metadata["input"] | {"names": names}
        copy_bundle(source, root / name / "1", **changes)
    broken = shutil.copytree(BUNDLES / "vowels" / "1", root / "broken" / "1")
    (broken / bundle.MARKER).write_text(json.dumps({"name": HOSTILE[0] * 20}))
    with running(Settings(port=0, bundles=root, skip_broken=True)) as service:
        yield service


def digit(page):
    page.locator("#digit-samples button").nth(14).click()
    page.locator("#digit-said", has_text="ecided").wait_for()


def word(page):
    go(page, "word")
    page.locator("#word-samples button").first.click()
    wait_for(page, "word", "reads")


def text(page):
    go(page, "text")
    page.locator("#text-field").fill(f"turn on {HOSTILE[0]} {HOSTILE[4]}")
    page.locator("#text-said", has_text="decided at letter").wait_for()
    page.locator("#text-words > li").nth(3).wait_for()


def table(page):
    """A file whose name, columns, ids and labels are hostile."""
    rows = [["sequence", "label", *named(12)]]
    for name in HOSTILE:
        rows += [[name, name, *range(12)]] * 2
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    choose(page, "vowels")
    drop(page, f"{HOSTILE[0]}.csv", file.getvalue())
    page.locator("#answers-said", has_text="agree").wait_for()


def other_table(page):
    """The same, which the model refuses, with the names of columns."""
    table(page)
    choose(page, "digits")
    page.locator("#sequence-error", has_text="missing").wait_for()
    page.get_by_role("button", name="Use vowels").wait_for()


def steps(page):
    choose(page, "letters")
    drop(page, "word.json", (ROOT / "examples/word.json").read_text())
    wait_for(page, "sequence", "letters: ")


def texts(page):
    """A file of hostile texts, classified and labelled."""
    lines = [{"text": name, "label": name} for name in HOSTILE]
    for model in ("intents", "tags"):
        choose(page, model)
        drop(page, "texts.jsonl", "\n".join(map(json.dumps, lines)))
        wait_for(page, "sequence", f"{model}: ")
        page.locator("#sequence-which", has_text=f"of {len(HOSTILE)}").wait_for()


def models(page):
    go(page, "models")
    page.locator(".card").nth(len(SHIPPED)).wait_for()
    for summary in page.locator("#models summary").all():
        summary.click()


SHOWN = (digit, word, text, table, other_table, steps, texts, models)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("show", SHOWN, ids=[show.__name__ for show in SHOWN])
def test_panels(browser, hostile, show, size):
    """Nothing is executed, and no panel is wider than the page."""
    with opened(browser, hostile.url, viewport=size) as page:
        show(page)
        assert page.evaluate(INTRUDERS) == [None, 0]
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_reversal(page):
    """Marks that would reverse the sentence around a name are shown, and escaped in code."""
    texts = page.evaluate(
        "async (text) => { const { make } = await import('/playground/dom.js');"
        " const { code } = await import('/playground/code.js'); const box = make('div');"
        " code(box, 'classify', { model: 'intents', texts: [text] });"
        " return [make('p', {}, text).textContent, box.textContent]; }",
        "\u202eno\u202c שלום",
    )
    assert texts[0] == "\ufffdno\ufffd שלום"
    assert r"\u202eno\u202c שלום" in texts[1]


def test_documentation(browser, hostile):
    """Nor is anything executed at /docs, whose examples hold names of the models."""
    with opened(browser, f"{hostile.url}/docs") as page:
        for path in ("/classify", "/label", "/models/{name}"):
            page.locator(".opblock-summary-path", has_text=path).first.click()
        page.locator(".opblock-body").nth(2).wait_for()
        assert page.evaluate(INTRUDERS) == [None, 0]
