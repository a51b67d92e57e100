"""The playground in headless Chromium, drawn on with the mouse."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.servers import ROOT

BUNDLES = ROOT / "bundles"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
TIMEOUT_MS = 20_000


@contextmanager
def chromium() -> Iterator:
    """Run a browser until the block ends; skips the test if there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, url: str, *, complains=(), **options) -> Iterator:
    """Open a page until the block ends.

    Fails on errors of the page, unless they contain one of `complains`."""
    options = {"viewport": DESKTOP, "reduced_motion": "reduce"} | options
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda m: errors.append(m.text) if m.type == "error" else None,
    )
    try:
        page.goto(url)
        yield page
        unexpected = [e for e in errors if not any(part in e for part in complains)]
        assert not unexpected, unexpected
    finally:
        context.close()


def draw(page, pad: str, strokes) -> None:
    """Draw strokes [points, 2] on a pad with the mouse; points are fractions of its side."""
    canvas = page.locator(pad)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def at(point):
        x, y = point
        return box["x"] + float(x) * box["width"], box["y"] + float(y) * box["height"]

    for stroke in strokes:
        page.mouse.move(*at(stroke[0]))
        page.mouse.down()
        for point in stroke[1:]:
            page.mouse.move(*at(point))
        page.mouse.up()


def summary(page, panel):
    """The text of a panel's prediction."""
    return page.locator(f"#{panel}-said").inner_text()


def wait_for(page, panel, text):
    """Wait until a panel's prediction contains a text."""
    page.locator(f"#{panel}-said", has_text=text).wait_for()


def go(page, panel):
    """Open a panel."""
    page.locator(f"#tab-{panel}").click()


def choose(page, model: str) -> None:
    """Choose a model in the panel of sequences."""
    go(page, "sequence")
    page.locator("#sequence-model").select_option(model)


def drop(page, name: str, text: str) -> None:
    """Drop a file on the panel of sequences."""
    page.locator("#sequence").evaluate(
        "(zone, [name, text]) => {"
        " const data = new DataTransfer(); data.items.add(new File([text], name));"
        " zone.dispatchEvent(new DragEvent('drop',"
        "  { dataTransfer: data, bubbles: true, cancelable: true })); }",
        [name, text],
    )
