"""The playground in headless Chromium, as a hand and a mouse use it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DESKTOP, PHONE = (
    {"width": 1280, "height": 860},
    {"width": 390, "height": 844},
)
PATIENCE = 20_000  # ms


@contextmanager
def chromium() -> Iterator:
    """A browser; skips where there is none."""
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
    """A page, until the block ends; whatever the page complained of fails, but for
    what holds one of `complains`."""
    options = {"viewport": DESKTOP, "reduced_motion": "reduce"} | options
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page, told = context.new_page(), []
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on(
        "console",
        lambda said: told.append(said.text) if said.type == "error" else None,
    )
    try:
        page.goto(url)
        yield page
        unexpected = [one for one in told if not any(part in one for part in complains)]
        assert not unexpected, unexpected
    finally:
        context.close()


def draw(page, pad: str, strokes) -> None:
    """Move the mouse over a pad along strokes [points, 2] of shares of its side."""
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
